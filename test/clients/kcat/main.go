// Command kcat is the client matrix' program for kcat: it runs the kcat command and looks at what it prints. kcat makes topics by
// writing to them, and administers nothing.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

type env struct {
	bootstrap, prefix, control string
	lines                      int
}

func main() {
	log.SetPrefix("kcat: ")
	e := env{bootstrap: os.Getenv("BOOTSTRAP"), prefix: os.Getenv("PREFIX"), control: os.Getenv("CONTROL")}
	var err error
	if e.lines, err = strconv.Atoi(os.Getenv("LINES")); err != nil {
		log.Fatal("BOOTSTRAP, PREFIX, CONTROL and LINES must be set: `make clients` does it")
	}
	version := e.version()
	type namedCase struct {
		name string
		run  func(context.Context) (string, error)
	}
	cases := []namedCase{{"create-topic", e.createTopic}}
	for _, codec := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		lacking := ""
		if codec == "none" { // once is enough
			lacking = "no times of its own"
		}
		cases = append(cases, namedCase{"produce-" + codec, func(ctx context.Context) (string, error) { return lacking, e.produce(ctx, codec) }})
	}
	cases = append(cases, namedCase{"group", e.group}, namedCase{"commit", e.commit}, namedCase{"seek-time", e.seekTime},
		namedCase{"list-offsets", e.listOffsets}, namedCase{"admin", e.admin}, namedCase{"large", e.large}, namedCase{"records", e.records})
	for _, c := range cases {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		began := time.Now()
		detail, err := c.run(ctx)
		cancel()
		log.Printf("%s: %v (%v)", c.name, err, time.Since(began).Round(time.Millisecond))
		result := "ok"
		if err != nil {
			result, detail = "failed", err.Error()
		}
		b, err := json.Marshal(map[string]string{"client": "kcat", "version": version, "case": c.name, "result": result, "detail": detail})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(string(b))
	}
}

// version is what kcat -V says: its own and librdkafka's.
func (e env) version() string {
	out, err := exec.Command("kcat", "-V").CombinedOutput()
	m := regexp.MustCompile(`Version ([0-9.]+).*librdkafka ([0-9.]+)`).FindSubmatch(out)
	if err != nil || m == nil {
		log.Fatalf("kcat -V: %v: %s", err, out)
	}
	return fmt.Sprintf("%s (librdkafka %s)", m[1], m[2])
}

func (e env) topic(name string) string { return e.prefix + "." + name }

// command is a run of kcat. Its complaints go to the log.
func (e env) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "kcat", append([]string{"-b", e.bootstrap, "-X", "client.id=" + e.prefix}, args...)...)
	cmd.Stderr = os.Stderr
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// write sends lines to partition 0, idempotently. -E: a broker that goes away is news to kcat, not the end.
func (e env) write(ctx context.Context, topic, codec string, in io.Reader, more ...string) error {
	cmd := e.command(ctx, append([]string{"-P", "-E", "-t", topic, "-p", "0", "-z", codec, "-X", "enable.idempotence=true", "-X", "message.timeout.ms=100000"}, more...)...)
	cmd.Stdin = in
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("kcat -P: %w", err)
	}
	return nil
}

// read returns what a consumer that ends by itself prints.
func (e env) read(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := e.command(ctx, append(args, "-q", "-E", "-X", "check.crcs=true")...)
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("kcat %s: %w", strings.Join(args, " "), err)
	}
	return out.String(), nil
}

func lines(from, n int) string {
	var b strings.Builder
	for i := from; i < from+n; i++ {
		fmt.Fprintf(&b, "line %d\n", i)
	}
	return b.String()
}

// metadata is what kcat -L -J says of a topic, as far as it is looked at.
type metadata struct {
	Brokers []struct {
		ID int `json:"id"`
	} `json:"brokers"`
	Topics []struct {
		Topic      string `json:"topic"`
		Partitions []struct {
			Leader   int `json:"leader"`
			Replicas []struct {
				ID int `json:"id"`
			} `json:"replicas"`
		} `json:"partitions"`
	} `json:"topics"`
}

func (e env) list(ctx context.Context, topic string) (metadata, error) {
	var m metadata
	out, err := e.read(ctx, "-L", "-J", "-t", topic)
	if err == nil {
		err = json.Unmarshal([]byte(out), &m)
	}
	return m, err
}

// await asks again until there is no error: leaders move.
func await(ctx context.Context, ask func() error) error {
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
}

// topics are what a group reads: of kcat's topics each has the broker's default number of partitions, one.
func (e env) topics() []string {
	out := []string{e.topic("main")}
	for i := range 3 {
		out = append(out, e.topic("main-"+strconv.Itoa(i)))
	}
	return out
}

func (e env) createTopic(ctx context.Context) (string, error) {
	for _, t := range e.topics() {
		if err := e.write(ctx, t, "none", strings.NewReader(lines(0, 100))); err != nil {
			return "", err
		}
		err := await(ctx, func() error {
			m, err := e.list(ctx, t)
			if err != nil {
				return err
			}
			if len(m.Topics) != 1 || len(m.Topics[0].Partitions) != 1 || len(m.Topics[0].Partitions[0].Replicas) != 3 {
				return fmt.Errorf("not one partition with three replicas: %+v", m)
			}
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	return "topics are made by writing to them, with one partition", nil
}

func (e env) produce(ctx context.Context, codec string) error {
	var in, want strings.Builder
	for i := range 1000 {
		value := fmt.Sprintf("value %d of %s: %s", i, codec, strings.Repeat("compressible ", 12))
		fmt.Fprintf(&in, "key-%d\t%s\n", i, value)
		fmt.Fprintf(&want, "%d\tkey-%d\tcodec=%s,more=1\t%s\n", i, i, codec, value)
	}
	topic := e.topic(codec)
	if err := e.write(ctx, topic, codec, strings.NewReader(in.String()), "-K", "\t", "-H", "codec="+codec, "-H", "more=1"); err != nil {
		return err
	}
	got, err := e.read(ctx, "-C", "-t", topic, "-p", "0", "-o", "beginning", "-e", "-f", `%o\t%k\t%h\t%s\n`)
	if err != nil {
		return err
	}
	return equal(got, want.String())
}

// equal says where the first difference is.
func equal(got, want string) error {
	if got == want {
		return nil
	}
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return fmt.Errorf("line %d is %.200q, not %.200q", i, g[i], w[i])
		}
	}
	return fmt.Errorf("%d lines, not %d", len(g)-1, len(w)-1)
}

// kill has the leader of partition 0 killed.
func (e env) kill(ctx context.Context, topic string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.control+"/kill?"+url.Values{"topic": {topic}, "partition": {"0"}}.Encode(), nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		body, err := io.ReadAll(io.LimitReader(res.Body, 1<<16))
		return errors.Join(fmt.Errorf("killing the leader: %s", body), err)
	}
	return nil
}

// watched collects what a kcat that runs on prints, and lets others wait for it.
type watched struct {
	mu  sync.Mutex
	all []byte
}

func (w *watched) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, b...)
	return len(b), nil
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(w.all)
}
