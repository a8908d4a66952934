package consumer

import (
	"encoding/hex"
	"reflect"
	"testing"
)

func ptr[T any](v T) *T { return &v }

// The bytes are what Kafka 4.3.1's serializers make of the same (GroupCoordinatorRecordHelpers).
func TestRecordsAreKafkas(t *testing.T) {
	m := &Member{ID: "m", Instance: ptr("i"), ClientID: "c", ClientHost: "/h", Topics: []string{"t"}, RebalanceTimeout: 1000, Assignor: ptr("range"),
		Classic: &Classic{SessionTimeout: 7, Protocols: []Protocol{{"range", []byte{1, 2}}}}}
	p := parts(1, 0, 1)
	for _, c := range []struct {
		what string
		got  []byte
		want string
	}{
		{"group's key", key(kindGroup, "g", ""), "0003" + "000167"},
		{"member's key", key(kindMember, "g", "m"), "0005" + "000167" + "00016d"},
		{"regular expression's key", key(kindRegex, "g", "a.*"), "0010" + "000167" + "0003612e2a"},
		{"group", encodeGroup(5, 0), "0000" + "00000005" + "00"},
		{"group with a hash", encodeGroup(5, 1), "0000" + "00000005" + "010008" + "0000000000000001"},
		{"target epoch", encodeTargetEpoch(5, 2), "0000" + "00000005" + "010008" + "0000000000000002"},
		{"target", encodeTarget(p), "0000" + "02" + hex.EncodeToString(p[0].Topic[:]) + "03" + "00000000" + "00000001" + "00" + "00"},
		{"current", (&Current{Epoch: 3, Previous: 2, State: Unrevoked, Assigned: p, Since: []int32{3, 3}}).encode(),
			"0000" + "00000003" + "00000002" + "01" + "02" + hex.EncodeToString(p[0].Topic[:]) + "03" + "00000000" + "00000001" +
				"010009" + "03" + "00000003" + "00000003" + "01" + "00"},
		{"regular expression", (&Resolved{Topics: []string{"a"}, Version: 1, Time: 2}).encode(), "0000" + "02" + "0261" + "0000000000000001" + "0000000000000002" + "00"},
		{"member", m.encode(), "0000" + "0269" + "00" + "0263" + "032f68" + "02" + "0274" + "01" + "000003e8" + "0672616e6765" +
			"010011" + "01" + "00000007" + "02" + "0672616e6765" + "030102" + "00" + "00"},
	} {
		if hex.EncodeToString(c.got) != c.want {
			t.Errorf("%s: %x, want %s", c.what, c.got, c.want)
		}
	}
	back, err := decodeMember("m", m.encode())
	if err != nil || !reflect.DeepEqual(back, m) {
		t.Errorf("%+v, %v", back, err)
	}
}

func TestRecordsOfALaterKafkaWithMoreTagsAreRead(t *testing.T) {
	b := encodeGroup(5, 1)
	b = append(append(b[:6:6], 2), append(append([]byte{}, b[7:]...), 9, 2, 0xaa, 0xbb)...)
	if epoch, hash, err := decodeGroup(b); epoch != 5 || hash != 1 || err != nil {
		t.Errorf("%d, %d, %v", epoch, hash, err)
	}
	if _, _, err := decodeGroup([]byte{0, 1, 0, 0, 0, 5, 0}); err == nil {
		t.Error("a version that is not known was read")
	}
}

// FuzzReplay feeds a group records of any bytes: none makes it panic or allocate what its bytes do not hold, and what it takes in
// it writes again so that the same comes out.
func FuzzReplay(f *testing.F) {
	w := newWorld(f, topic(1, 3), topic(2, 2))
	w.ok(static(joinOf("a", "t1"), "i"))
	hb := joinOf("b", "t2")
	hb.Regex = ptr("t.")
	w.ok(hb)
	w.ok(beatOf("a", 2, parts(1, 0, 1, 2)))
	w.remove("b")
	for _, r := range w.log {
		f.Add(r.Key, r.Value, r.Value == nil)
	}
	f.Fuzz(func(t *testing.T, k, value []byte, tombstone bool) {
		parsed, err := ParseKey(k)
		if err != nil {
			return
		}
		if tombstone {
			value = nil
		} else if value == nil {
			value = []byte{}
		}
		g := New(parsed.Group)
		if g.Replay(parsed, value) != nil {
			return
		}
		g.Loaded()
		again := New(parsed.Group)
		var encoded []byte
		switch {
		case tombstone:
		case parsed.Kind == kindMember:
			encoded = g.members[parsed.Name].encode()
		case parsed.Kind == kindGroup:
			encoded = encodeGroup(g.epoch, g.hash)
		case parsed.Kind == kindTargetEpoch:
			encoded = encodeTargetEpoch(g.targetEpoch, g.computed)
		case parsed.Kind == kindRegex:
			encoded = g.resolved[parsed.Name].encode()
		}
		if encoded == nil {
			return
		}
		if err := again.Replay(parsed, encoded); err != nil {
			t.Fatalf("what was written again can't be read: %v", err)
		}
		if again.Loaded(); !reflect.DeepEqual(g, again) {
			t.Fatalf("%+v, and written again %+v", g, again)
		}
	})
}
