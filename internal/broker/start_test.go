package broker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestApiVersionsAdvertisesTheRangeTable(t *testing.T) {
	n := newFleet(t, 1).nodes[1]
	c := n.dial(t)
	for v := int16(0); v <= 4; v++ {
		req := kmsg.NewPtrApiVersionsRequest()
		req.ClientSoftwareName, req.ClientSoftwareVersion = "test-client", "1.0"
		resp := ask[*kmsg.ApiVersionsResponse](c, v, req)
		if resp.ErrorCode != 0 || len(resp.ApiKeys) != len(apis) {
			t.Fatalf("v%d: error %d, %d keys", v, resp.ErrorCode, len(resp.ApiKeys))
		}
		got := map[int16][2]int16{}
		for _, k := range resp.ApiKeys {
			got[k.ApiKey] = [2]int16{k.MinVersion, k.MaxVersion}
		}
		for key, want := range map[int16][2]int16{
			0: {0, 13}, 1: {4, 18}, 2: {1, 11}, 3: {0, 13}, 10: {0, 6}, 18: {0, 4}, 22: {0, 5}, 23: {2, 4},
			19: {2, 7}, 20: {1, 6}, 21: {0, 2}, 32: {1, 4}, 33: {0, 2}, 37: {0, 3}, 44: {0, 1}, 60: {0, 2}, 75: {0, 0},
		} {
			if got[key] != want {
				t.Errorf("v%d: key %d: %v, want %v", v, key, got[key], want)
			}
		}
		if v >= 3 && resp.FinalizedFeaturesEpoch < 0 {
			t.Errorf("v%d: finalized features epoch %d is ignored by clients", v, resp.FinalizedFeaturesEpoch)
		}
	}
}

func TestNothingIsAdvertisedBeyondWhatTheCodecReleases(t *testing.T) {
	for _, a := range apis {
		req := kmsg.RequestForKey(a.key)
		if req == nil || a.max > req.MaxVersion() || a.min > a.max || a.advertised > a.min || a.advertised != a.min && a.key != 0 {
			t.Errorf("row %+v", a)
		}
		if shapes[a.key] == nil {
			t.Errorf("API %d has no shape: every request of it would be refused", a.key)
		}
		if (a.handle == nil) == (a.start == nil) {
			t.Errorf("API %d: exactly one of handle and start", a.key)
		}
	}
}

func TestUnknownApiVersionsVersionGetsV0AndOneKey(t *testing.T) {
	c := newFleet(t, 1).nodes[1].dial(t)
	for _, version := range []int16{5, 99, -1, 32767} {
		// The rest of the header is garbage: it is of a version nobody knows here.
		frame := binary.BigEndian.AppendUint32(nil, 8+3)
		frame = binary.BigEndian.AppendUint16(frame, 18)
		frame = binary.BigEndian.AppendUint16(frame, uint16(version))
		frame = binary.BigEndian.AppendUint32(frame, 77)
		frame = append(frame, 0xff, 0xfe, 0xfd)
		if _, err := c.nc.Write(frame); err != nil {
			t.Fatal(err)
		}
		corr, body, err := c.frame()
		want := []byte{0, 35, 0, 0, 0, 1, 0, 18, 0, 0, 0, 4}
		if err != nil || corr != 77 || !bytes.Equal(body, want) {
			t.Fatalf("version %d: %d %x %v, want %x", version, corr, body, err, want)
		}
	}
	// The connection lives on.
	ask[*kmsg.ApiVersionsResponse](c, 0, kmsg.NewPtrApiVersionsRequest())
}

func TestApiVersionsFeaturesWithMinimumZeroFromV4(t *testing.T) {
	was := features
	t.Cleanup(func() { features = was }) // after the brokers have stopped
	features = []feature{{"zero.version", 0, 1}, {"one.version", 1, 2}}
	c := newFleet(t, 1).nodes[1].dial(t)
	for v, want := range map[int16][]string{3: {"one.version"}, 4: {"zero.version", "one.version"}} {
		req := kmsg.NewPtrApiVersionsRequest()
		req.ClientSoftwareName, req.ClientSoftwareVersion = "a", "1"
		var got []string
		for _, f := range ask[*kmsg.ApiVersionsResponse](c, v, req).SupportedFeatures {
			got = append(got, f.Name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("v%d: %v, want %v", v, got, want)
		}
	}
}

func TestApiVersionsRefusesBadSoftwareNames(t *testing.T) {
	c := newFleet(t, 1).nodes[1].dial(t)
	for name, code := range map[string]int16{"": 42, "-a": 42, "a b": 42, "apache-kafka-java": 0} {
		req := kmsg.NewPtrApiVersionsRequest()
		req.ClientSoftwareName, req.ClientSoftwareVersion = name, "4.3.1"
		if got := ask[*kmsg.ApiVersionsResponse](c, 3, req).ErrorCode; got != code {
			t.Errorf("%q: %d, want %d", name, got, code)
		}
	}
}

func TestUnsupportedKeyOrVersionClosesTheConnection(t *testing.T) {
	n := newFleet(t, 1).nodes[1]
	for _, kv := range [][2]int16{{3, 14}, {3, -1}, {0, 2}, {0, 14}, {1, 3}, {999, 0}, {-1, 0}, {11, 0}, {4, 0}} {
		c := n.dial(t)
		frame := binary.BigEndian.AppendUint32(nil, 10)
		frame = binary.BigEndian.AppendUint16(frame, uint16(kv[0]))
		frame = binary.BigEndian.AppendUint16(frame, uint16(kv[1]))
		frame = append(frame, 0, 0, 0, 1, 0xff, 0xff)
		c.nc.Write(frame)
		c.closed()
	}
}

// fill sets every field of a request to something, so that its bytes exercise every part of the shape.
func fill(v reflect.Value, depth int) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[kmsg.Tags]() {
			v.Addr().Interface().(*kmsg.Tags).Set(77, []byte("unknown"))
			return
		}
		for i := range v.NumField() {
			if v.Type().Field(i).Name != "Version" && v.Field(i).CanSet() {
				fill(v.Field(i), depth+1)
			}
		}
	case reflect.Slice:
		s := reflect.MakeSlice(v.Type(), 2, 2)
		for i := range 2 {
			fill(s.Index(i), depth+1)
		}
		v.Set(s)
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), depth)
		}
	case reflect.String:
		v.SetString("text")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(3)
	case reflect.Uint8, reflect.Uint16:
		v.SetUint(5)
	}
}

// requestsOf gives an empty and a full request of each version served.
func requestsOf(a *api) []kmsg.Request {
	var out []kmsg.Request
	for v := a.min; v <= a.max; v++ {
		empty, full := kmsg.RequestForKey(a.key), kmsg.RequestForKey(a.key)
		fill(reflect.ValueOf(full).Elem(), 0)
		empty.SetVersion(v)
		full.SetVersion(v)
		out = append(out, empty, full)
	}
	return out
}

func TestShapesMatchTheCodec(t *testing.T) {
	for i := range apis {
		a := &apis[i]
		for _, req := range requestsOf(a) {
			body := req.AppendTo(nil)
			s := scanner{src: body, version: req.GetVersion(), flexible: req.IsFlexible(), elements: maxElements}
			s.fields(shapes[a.key])
			if s.err != nil || len(s.src) != 0 {
				t.Errorf("%T v%d: %v, %d of %d bytes left", req, req.GetVersion(), s.err, len(s.src), len(body))
			}
			for cut := range body {
				if _, err := guard(a.key, req.GetVersion(), req.IsFlexible(), body[:cut]); err == nil {
					t.Errorf("%T v%d: %d of %d bytes passed for a whole request", req, req.GetVersion(), cut, len(body))
				}
			}
		}
	}
}

// answersOf gives an empty and a full answer of each version that a peer may be asked.
func answersOf(key int16) []kmsg.Response {
	var out []kmsg.Response
	a := byKey[key]
	for v := a.min; v <= a.max; v++ {
		empty, full := kmsg.ResponseForKey(key), kmsg.ResponseForKey(key)
		fill(reflect.ValueOf(full).Elem(), 0)
		empty.SetVersion(v)
		full.SetVersion(v)
		out = append(out, empty, full)
	}
	return out
}

func TestAnswerShapesMatchTheCodec(t *testing.T) {
	for key, sh := range answerShapes {
		for _, resp := range answersOf(key) {
			body := resp.AppendTo(nil)
			s := scanner{src: body, version: resp.GetVersion(), flexible: resp.IsFlexible(), elements: maxElements}
			s.fields(sh)
			if s.err != nil || len(s.src) != 0 {
				t.Errorf("%T v%d: %v, %d of %d bytes left", resp, resp.GetVersion(), s.err, len(s.src), len(body))
			}
			for cut := range body {
				if _, err := decodeAnswer(kmsg.ResponseForKey(key), resp.GetVersion(), body[:cut]); err == nil {
					t.Errorf("%T v%d: %d of %d bytes passed for a whole answer", resp, resp.GetVersion(), cut, len(body))
				}
			}
		}
	}
}

// allocations is how many a call of f makes. What other goroutines allocate meanwhile is counted too: the least of a few is f's own.
func allocations(f func()) float64 {
	least := math.Inf(1)
	for range 5 {
		least = min(least, testing.AllocsPerRun(1, f))
	}
	return least
}

// A peer's answer that claims more elements than it has room for allocates nothing for them.
func TestHostileAnswersCostNothing(t *testing.T) {
	big := append([]byte{0, 0, 0, 0, 0x3f, 0xff, 0xff, 0xff}, make([]byte, 8<<20)...)
	resp := kmsg.NewPtrListOffsetsResponse()
	if allocs := allocations(func() {
		if _, err := decodeAnswer(resp, 4, big); err == nil {
			t.Error("passed")
		}
	}); allocs > 20 {
		t.Errorf("%v allocations", allocs)
	}
}

func TestHostileClaimsCostNothing(t *testing.T) {
	big := make([]byte, 4<<20) // bytes enough to back the claims
	claim := func(head ...byte) []byte { return append(head, big...) }
	for name, c := range map[string]struct {
		key, version int16
		body         []byte
	}{
		"metadata topics":          {3, 1, claim(0, 0x3f, 0xff, 0xff)},
		"produce topics":           {0, 7, claim(0xff, 0xff, 0, 1, 0, 0, 0, 0, 0, 0x3f, 0xff, 0xff)},
		"flexible topics":          {3, 12, claim(0xff, 0xff, 0xff, 0x01)},
		"tags by thousand million": {18, 3, []byte{2, 'a', 2, '1', 0xff, 0xff, 0xff, 0xff, 0x0f}},
		"nested tags in replica state": {1, 15, func() []byte {
			req := kmsg.NewPtrFetchRequest()
			req.SetVersion(15)
			b := req.AppendTo(nil)
			b = b[:len(b)-1]
			return append(append(b, 1, 1, 17), 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0x0f)
		}()},
	} {
		req := kmsg.RequestForKey(c.key)
		req.SetVersion(c.version)
		allocs := allocations(func() {
			if _, err := guard(c.key, c.version, req.IsFlexible(), c.body); err == nil {
				t.Errorf("%s: passed", name)
			}
		})
		if allocs > 20 {
			t.Errorf("%s: %v allocations", name, allocs)
		}
	}
}

// Kafka's strings have at most 32,767 bytes, however their length is written. A longer one would not survive where it has two bytes: in
// the records of groups it would be read as the name of another group, and what follows it as other fields.
func TestStringsAreAsLongAsKafkas(t *testing.T) {
	long := strings.Repeat("g", maxString+1)
	join := kmsg.NewPtrJoinGroupRequest()
	beat := kmsg.NewPtrConsumerGroupHeartbeatRequest()
	beat.SubscribedTopicRegex = &long
	fetch := kmsg.NewPtrFetchRequest()
	fetch.ClusterID = &long
	groups := kmsg.NewPtrDescribeGroupsRequest()
	for _, c := range []struct {
		req     kmsg.Request
		version int16
		set     func(s string)
	}{
		{join, 9, func(s string) { join.Group = s }}, {beat, 1, func(s string) { beat.SubscribedTopicRegex = &s }},
		{fetch, 13, func(s string) { fetch.ClusterID = &s }}, {groups, 6, func(s string) { groups.Groups = []string{"a", s} }},
	} {
		c.req.SetVersion(c.version)
		for n, ok := range map[int]bool{maxString: true, maxString + 1: false} {
			c.set(long[:n])
			if _, err := guard(c.req.Key(), c.version, true, c.req.AppendTo(nil)); (err == nil) != ok {
				t.Errorf("%T with a string of %d bytes: %v", c.req, n, err)
			}
		}
	}
}

// What is said of an error goes into a string, too, and may name what the client sent.
func TestMessagesOfErrorsAreBounded(t *testing.T) {
	m := MessageOf(errors.New(strings.Repeat("é", maxString)))
	if len(*m) > maxString || !utf8.ValidString(*m) {
		t.Errorf("%d bytes", len(*m))
	}
}

func FuzzHeader(f *testing.F) {
	f.Add([]byte{0, 4, 't', 'e', 's', 't', 0}, true)
	f.Add([]byte{0xff, 0xff}, false)
	f.Fuzz(func(t *testing.T, b []byte, flexible bool) {
		id, body, err := parseClientID(b, flexible)
		if err == nil && (len(body) > len(b) || id != nil && len(*id) > len(b)) {
			t.Fatalf("%d bytes became %d", len(b), len(body))
		}
	})
}

func FuzzRequestDecode(f *testing.F) {
	for i := range apis {
		for _, req := range requestsOf(&apis[i]) {
			rest := []byte{0xff, 0xff}
			if req.IsFlexible() {
				rest = append(rest, 0)
			}
			f.Add(apis[i].key, req.GetVersion(), req.AppendTo(rest))
		}
	}
	f.Fuzz(func(t *testing.T, key, version int16, rest []byte) {
		if lookupAPI(key, version) == nil {
			t.Skip()
		}
		if r, err := walkRequest(key, version, rest); err == nil {
			_ = r.decode() // neither a panic nor memory beyond the walk's bound
		}
	})
}

func FuzzOutcome(f *testing.F) {
	o := refused(kerr.NotLeaderForPartition)
	f.Add(o.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := decodeOutcome(b)
		if err != nil {
			return
		}
		if again, err := decodeOutcome(o.encode()); err != nil || !reflect.DeepEqual(o.base, again.base) {
			t.Fatalf("%+v: %v", o, err)
		}
		_, _ = decodeForwarded(b)
	})
}
