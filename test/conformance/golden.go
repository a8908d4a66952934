package conformance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Record plays the script against the cluster at bootstrap, three brokers with ids 1 to 3, and writes its answers below dir: of all APIs,
// unless some are named by their keys.
func Record(bootstrap, dir string, only []int16, say func(format string, args ...any)) error {
	c, err := connect(bootstrap)
	if err != nil {
		return err
	}
	defer c.close()
	c.afterthought = 3 * time.Second
	for _, a := range apis() {
		if len(only) > 0 && !slices.Contains(only, a.key) {
			continue
		}
		began := time.Now()
		answers, err := a.play(c, false)
		if err != nil {
			return err
		}
		if err := save(file(dir, a.key), answers); err != nil {
			return err
		}
		say("%s: %d answers in %v", kmsg.NameForKey(a.key), len(answers), time.Since(began).Round(time.Second))
	}
	return nil
}

func file(dir string, key int16) string {
	return filepath.Join(dir, fmt.Sprintf("%02d_%s.json", key, kmsg.NameForKey(key)))
}

func save(name string, answers map[string]tree) error {
	var b bytes.Buffer
	b.WriteString("{\n")
	for i, k := range slices.Sorted(maps.Keys(answers)) {
		key, _ := json.Marshal(k)
		value, err := json.Marshal(answers[k])
		if err != nil {
			return err
		}
		if i > 0 {
			b.WriteString(",\n")
		}
		fmt.Fprintf(&b, "%s: %s", key, value)
	}
	b.WriteString("\n}\n")
	return os.WriteFile(name, b.Bytes(), 0o644)
}

func load(name string) (map[string]tree, error) {
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not there: make conformance records Kafka's answers", name)
	}
	if err != nil {
		return nil, err
	}
	var out map[string]tree
	return out, json.Unmarshal(b, &out)
}

// asJSON makes a tree what it would be after being saved and loaded.
func asJSON(t tree) (out tree) {
	b, err := json.Marshal(t)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		panic(err)
	}
	return out
}

// difference is one field that is not the same.
type difference struct {
	key         int16
	step        string // case, version and step
	path        string // of the field, list positions left out: Topics.Partitions.ErrorCode
	kafka, ours tree
}

func (d difference) String() string {
	return fmt.Sprintf("%s, %s: %s: Kafka %s, Chronik %s", kmsg.NameForKey(d.key), d.step, d.path, short(d.kafka), short(d.ours))
}

func short(t tree) string {
	b, _ := json.Marshal(t)
	if len(b) > 300 {
		return string(b[:300]) + "…"
	}
	return string(b)
}

// byName is a list of things with different names as a map; nil where it is no such list.
func byName(list []tree) map[string]tree {
	out := make(map[string]tree, len(list))
	for _, x := range list {
		m, ok := x.(map[string]tree)
		if !ok {
			return nil
		}
		name, ok := m["Name"].(string)
		if !ok || out[name] != nil {
			return nil
		}
		out[name] = x
	}
	return out
}

// compare lists where two answers differ.
func compare(path string, kafka, ours tree, found func(path string, kafka, ours tree)) {
	switch k := kafka.(type) {
	case map[string]tree:
		o, ok := ours.(map[string]tree)
		if !ok {
			break
		}
		for _, name := range slices.Sorted(maps.Keys(k)) {
			sub := name
			if path != "" {
				sub = path + "." + name
			}
			compare(sub, k[name], o[name], found)
		}
		return
	case []tree:
		o, ok := ours.([]tree)
		if kn, on := byName(k), byName(o); ok && kn != nil && on != nil {
			for _, name := range slices.Sorted(maps.Keys(kn)) {
				compare(path+"["+name+"]", kn[name], on[name], found)
			}
			for _, name := range slices.Sorted(maps.Keys(on)) {
				if kn[name] == nil {
					found(path+"["+name+"]", nil, on[name])
				}
			}
			return
		}
		if !ok || len(o) != len(k) {
			break
		}
		for i := range k {
			compare(path, k[i], o[i], found)
		}
		return
	}
	if !reflect.DeepEqual(kafka, ours) {
		found(path, kafka, ours)
	}
}
