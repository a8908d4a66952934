// Package matrix holds the cases of the client matrix for clients written in Go. A client's program implements Driver with the
// client's own calls, and Main does the rest: see ../../README.md.
package matrix

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

// Record is a record as a client sends or reads it. Times have milliseconds.
type Record struct {
	Partition  int32
	Offset     int64
	Key, Value []byte
	Headers    []Header
	Time       time.Time
}

// Header is a record's header.
type Header struct {
	Key   string
	Value []byte
}

// Start is where a reader begins: at an offset, or at the first record of Time or later if that is set.
type Start struct {
	Offset int64
	Time   time.Time
}

// Earliest and Latest are the times that Offsets takes for a partition's beginning and end.
const (
	Earliest = -2
	Latest   = -1
)

// ErrTooLarge is what a Producer tells done when the broker has refused a record with MESSAGE_TOO_LARGE.
var ErrTooLarge = errors.New("MESSAGE_TOO_LARGE")

// Unsupported is an error that says that the client has no such thing.
type Unsupported string

func (u Unsupported) Error() string { return string(u) }

// Producer sends records with acks=all.
type Producer interface {
	// Send hands a record over and may block while much is under way. done is called once, from any goroutine.
	Send(topic string, r Record, done func(error))
	// Close waits for everything sent.
	Close() error
}

// Reader reads a partition.
type Reader interface {
	Next(ctx context.Context) (Record, error)
	Close() error
}

// Member is a consumer in a group that begins at partitions' beginnings where nothing is committed and commits only when told to.
type Member interface {
	// Owned lists the partitions that are assigned now.
	Owned() []int32
	Next(ctx context.Context) (Record, error)
	// Commit commits the offsets, each of the next record to read.
	Commit(ctx context.Context, offsets map[int32]int64) error
	// Leave leaves the group.
	Leave() error
}

// Driver is a client.
type Driver interface {
	// Idempotent says whether the client's producers are.
	Idempotent() bool
	// NewProducer makes a producer that lets records of up to maxBytes through.
	NewProducer(codec string, maxBytes int) (Producer, error)
	NewReader(topic string, partition int32, start Start) (Reader, error)
	Join(group, topic string) (Member, error)

	CreateTopic(ctx context.Context, topic string, partitions, replicas int, configs map[string]string) error
	DescribeTopic(ctx context.Context, topic string) (partitions, replicas int, err error)
	DeleteTopic(ctx context.Context, topic string) error
	// UnknownTopic says whether an error of DescribeTopic means that there is no such topic.
	UnknownTopic(err error) bool
	AddPartitions(ctx context.Context, topic string, total int) error
	Nodes(ctx context.Context) (int, error)
	TopicConfig(ctx context.Context, topic, name string) (string, error)
	SetTopicConfig(ctx context.Context, topic, name, value string) error
	BrokerConfig(ctx context.Context, node int32, name string) (string, error)
	Groups(ctx context.Context) ([]string, error)
	// DescribeGroup returns the group's state as Kafka names it.
	DescribeGroup(ctx context.Context, group string) (state string, members int, err error)
	DeleteGroup(ctx context.Context, group string) error
	Committed(ctx context.Context, group, topic string) (map[int32]int64, error)
	// Offsets asks for Earliest, Latest or the first record of a time in milliseconds or later (-1 or the end: there is none).
	Offsets(ctx context.Context, topic string, at int64) (map[int32]int64, error)
	DeleteRecords(ctx context.Context, topic string, partition int32, before int64) error
	Close() error
}

// Env is what the runner has given the program.
type Env struct {
	Bootstrap       []string
	Prefix, Control string
	Lines           int
}

// Main runs every case and prints its line. module is the client's, for its version; more goes behind it.
func Main(client, module, more string, open func(Env) (Driver, error)) {
	log.SetPrefix(client + ": ")
	e := Env{Bootstrap: strings.Split(os.Getenv("BOOTSTRAP"), ","), Prefix: os.Getenv("PREFIX"), Control: os.Getenv("CONTROL")}
	var err error
	if e.Lines, err = strconv.Atoi(os.Getenv("LINES")); err != nil || e.Prefix == "" || e.Control == "" {
		log.Fatal("BOOTSTRAP, PREFIX, CONTROL and LINES must be set: `make clients` does it")
	}
	d, err := open(e)
	if err != nil {
		log.Fatal(err)
	}
	s := &suite{Env: e, d: d}
	for _, c := range s.cases() {
		began := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
		detail, err := c.run(ctx)
		cancel()
		log.Printf("%s: %v (%v)", c.name, err, time.Since(began).Round(time.Millisecond))
		result := "ok"
		var un Unsupported
		switch {
		case errors.As(err, &un):
			result, detail = "unsupported", un.Error()
		case err != nil:
			result, detail = "failed", err.Error()
		}
		b, err := json.Marshal(map[string]string{"client": client, "version": version(module) + more, "case": c.name, "result": result, "detail": detail})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(string(b))
	}
	if err := d.Close(); err != nil {
		log.Fatal(err)
	}
}

// version is what the program was built with.
func version(module string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, m := range info.Deps {
		if m.Path == module {
			return strings.TrimPrefix(m.Version, "v")
		}
	}
	return "unknown"
}

// kill has the leader of a partition killed.
func (e Env) kill(ctx context.Context, topic string, partition int32) error {
	u := e.Control + "/kill?" + url.Values{"topic": {topic}, "partition": {strconv.Itoa(int(partition))}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<16))
	if err == nil && res.StatusCode != http.StatusOK {
		err = errors.New(string(body))
	}
	if err != nil {
		return fmt.Errorf("killing the leader: %w", err)
	}
	return nil
}

// inOrder does one step after the other until one fails.
func inOrder(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// change makes a change until a look finds it: its answer may get lost with a node, and a node may be down just then.
func change(ctx context.Context, what string, do func() error, ok func() (bool, error)) error {
	var last time.Time
	var failed error
	var un Unsupported
	err := await(ctx, what, func() (bool, error) {
		if time.Since(last) > 5*time.Second {
			last = time.Now()
			if failed = do(); failed != nil {
				log.Printf("%s: %v", what, failed)
			}
			if errors.As(failed, &un) {
				return true, nil
			}
		}
		yes, err := ok()
		return yes, errors.Join(failed, err)
	})
	if un != "" {
		return un
	}
	return err
}

// await calls ok until it says yes; the error of a no says what is missing.
func await(ctx context.Context, what string, ok func() (bool, error)) error {
	for {
		yes, err := ok()
		if yes {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not come: %v: %w", what, err, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}
