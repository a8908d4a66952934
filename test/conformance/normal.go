package conformance

import (
	"encoding/hex"
	"fmt"
	"reflect"
	"regexp"
	"sort"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/record"
)

// tree is an answer as JSON has it: maps, lists, strings, numbers, bools and nil.
type tree = any

// normalize turns an answer into a tree, and gives what differs between any two clusters a name. c tells the names.
func (c *cluster) normalize(resp kmsg.Response) tree {
	n := &normalizer{c: c, key: resp.Key()}
	return n.value("", reflect.ValueOf(resp).Elem())
}

type normalizer struct {
	c   *cluster
	key int16
}

// unlisted are fields that are not part of what a client sees.
var unlisted = map[string]bool{"Version": true, "UnknownTags": true}

func (n *normalizer) value(name string, v reflect.Value) tree {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return n.value(name, v.Elem())
	case reflect.Struct:
		return n.structure(v)
	case reflect.Array: // [16]byte
		return n.uuid(v.Interface())
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return n.bytes(name, v)
		}
		return n.list(name, v)
	case reflect.String:
		return n.text(name, v.String())
	case reflect.Bool:
		return v.Bool()
	case reflect.Float64, reflect.Float32:
		return v.Float()
	case reflect.Uint8, reflect.Uint16, reflect.Uint32:
		return n.number(name, int64(v.Uint()))
	default:
		return n.number(name, v.Int())
	}
}

func (n *normalizer) structure(v reflect.Value) tree {
	out := map[string]tree{}
	t := v.Type()
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.IsExported() || unlisted[f.Name] {
			continue
		}
		out[f.Name] = n.value(f.Name, v.Field(i))
	}
	return out
}

// sets are lists whose order says nothing.
var sets = map[string]bool{"ISR": true, "Replicas": true, "OfflineReplicas": true, "Brokers": true, "Configs": true, "ApiKeys": true, "Members": true,
	"SupportedFeatures": true, "FinalizedFeatures": true, "CurrentVoters": true, "Observers": true, "Nodes": true, "ConfigResources": true,
	"ActiveProducers": true, "EligibleLeaderReplicas": true, "LastKnownELR": true, "NodeEndpoints": true}

func (n *normalizer) list(name string, v reflect.Value) tree {
	if v.IsNil() {
		return nil
	}
	out := make([]tree, v.Len())
	for i := range v.Len() {
		out[i] = n.value(name+"[]", v.Index(i))
	}
	if sets[name] || name == "Topics" && (n.key == 19 || n.key == 20 || n.key == 35 || n.key == 68) || name == "Partitions" && n.key == 35 {
		sort.SliceStable(out, func(i, j int) bool { return sortKey(out[i]) < sortKey(out[j]) })
	}
	return out
}

// sortKey orders the elements of a set: by name where they have one.
func sortKey(t tree) string {
	if m, ok := t.(map[string]tree); ok {
		for _, name := range []string{"Name", "Topic"} {
			if s, ok := m[name].(string); ok {
				return s
			}
		}
	}
	return fmt.Sprint(t)
}

func (n *normalizer) uuid(v any) tree {
	id, ok := v.([16]byte)
	switch {
	case !ok:
		return fmt.Sprint(v)
	case id == [16]byte{}:
		return "no id"
	}
	if topic, ok := n.c.ids[id]; ok {
		return "id of " + topic
	}
	return "an id"
}

func (n *normalizer) text(name, s string) tree {
	if s != "" && s == n.c.group {
		return "the group"
	}
	if n.key == 32 && name == "Value" {
		return place(s)
	}
	switch name {
	case "ErrorMessage", "BatchIndexErrorMessage", "Documentation":
		if s == "" {
			return ""
		}
		return "text"
	case "Host", "Host[]":
		return "a host"
	case "ClusterID":
		return "cluster id"
	case "MemberID", "LeaderID", "Leader":
		if s == "" {
			return ""
		}
		return "a member"
	case "ClientHost":
		return "a client's host"
	case "Dir":
		return "a directory"
	case "Rack":
		return s
	}
	return s
}

var address = regexp.MustCompile(`127\.0\.0\.1:[0-9]+`)

// place is a config's value in which addresses and directories have names. Kafka's own default stays.
func place(value string) tree {
	if strings.HasPrefix(value, "/") && value != "/tmp/kafka-logs" {
		return "a directory"
	}
	return address.ReplaceAllString(value, "an address")
}

// aboutNow is any time since 2020 in milliseconds.
const aboutNow = 1_577_836_800_000

func (n *normalizer) number(name string, v int64) tree {
	switch name {
	case "NodeID", "Leader", "ControllerID", "LeaderID", "Coordinator", "BrokerID", "ReplicaID", "NodeID[]", "ISR[]", "Replicas[]":
		if v >= 1 && v <= 3 {
			return n.broker(v)
		}
	case "OfflineReplicas[]", "EligibleLeaderReplicas[]", "LastKnownELR[]", "AddingReplicas[]", "RemovingReplicas[]":
		if n.c.down > 0 {
			return n.broker(v)
		}
	case "Port":
		return "a port"
	case "LeaderEpoch", "CurrentLeaderEpoch", "Epoch":
		if v >= 0 {
			return "an epoch"
		}
	case "AssignmentEpoch", "MemberEpoch":
		if v > 0 && n.key == 69 { // brokers hear of a topic one after the other
			return "an epoch"
		}
	case "LogEndOffset", "HighWatermark":
		if n.key == 55 && v > 0 { // raft indexes of the metadata group
			return "an index"
		}
	case "SessionID":
		if v > 0 {
			return "a session"
		}
	case "ProducerID":
		if v >= 0 {
			return "a producer id"
		}
	case "TotalBytes", "UsableBytes", "Size":
		if v > 0 {
			return "bytes"
		}
	case "FinalizedFeaturesEpoch":
		if v >= 0 {
			return "an epoch"
		}
	}
	if v >= aboutNow && v < 4*aboutNow {
		return "about now"
	}
	return strconv.FormatInt(v, 10)
}

func (n *normalizer) broker(id int64) tree {
	if n.c.down > 0 && id == int64(n.c.down) {
		return "the stopped broker"
	}
	return "a broker"
}

// bytes shows record batches as what they hold, and other bytes in hexadecimal.
func (n *normalizer) bytes(name string, v reflect.Value) tree {
	if v.IsNil() {
		return nil
	}
	b := v.Bytes()
	if name != "RecordBatches" {
		return hex.EncodeToString(b)
	}
	out := []tree{}
	for len(b) > 0 {
		h, err := record.ParseHeader(b)
		if err != nil || h.Size() > len(b) {
			return append(out, "the beginning of a batch")
		}
		if _, err := record.Validate(b[:h.Size()]); err != nil {
			return append(out, "unsound: "+err.Error())
		}
		batch := map[string]tree{"BaseOffset": h.BaseOffset, "LastOffsetDelta": h.LastOffsetDelta, "Attributes": h.Attributes,
			"ProducerEpoch": h.ProducerEpoch, "BaseSequence": h.BaseSequence, "Epoch": n.number("LeaderEpoch", int64(h.LeaderEpoch)),
			"ProducerID": n.number("ProducerID", h.ProducerID), "Size": h.Size()}
		out = append(out, batch)
		b = b[h.Size():]
	}
	return out
}
