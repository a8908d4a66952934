package controller

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/chronik-go/chronik/internal/controller/controllerpb"
)

// sealed gives a message's bytes the frame that they would have come in.
func sealed(body []byte) []byte {
	b := append([]byte(magicCall+"\x00\x00\x00\x00"), body...)
	putCRC(b)
	return b
}

// FuzzCall feeds what another node asks the controller, its checksum put right: a leader answers it or refuses it, and its
// state stays one that can be encoded and read back.
func FuzzCall(f *testing.F) {
	id := uuid.UUID{9}
	for _, a := range []*controllerpb.Ask{
		{Id: id[:], What: &controllerpb.Ask_Barrier{Barrier: &controllerpb.Barrier{}}},
		{Id: id[:], What: &controllerpb.Ask_ProducerIds{ProducerIds: &controllerpb.AskProducerIDs{Count: 10}}},
		{Id: id[:], What: &controllerpb.Ask_CreateTopics{CreateTopics: &controllerpb.AskCreateTopics{Topics: []*controllerpb.AskCreateTopics_Topic{
			{Name: "t", Partitions: 2, ReplicationFactor: 3}, {Name: "u", Partitions: -1, ReplicationFactor: -1}}}}},
		{Id: id[:], What: &controllerpb.Ask_RegisterNode{RegisterNode: nodeProto(testImage(5).Nodes[5])}},
	} {
		b, err := seal(magicCall, a)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[frameHead:])
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		fc := newFakeCluster(t, testImage(4), 1)
		c := fc.ctl(1)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		answer, err := c.HandleCall(ctx, 2, Method, sealed(body))
		if err != nil {
			var corrupt *CorruptError
			if !errors.As(err, &corrupt) {
				t.Fatalf("not damage: %v", err)
			}
			return
		}
		var ans controllerpb.Answer
		if err := unseal(magicCall, "call", answer, &ans); err != nil {
			t.Fatalf("an answer that can't be read: %v", err)
		}
		_ = answerError(&ans)
		state, err := EncodeImage(c.machine.Image())
		if err != nil {
			t.Fatalf("a state that can't be encoded: %v", err)
		}
		if _, err := DecodeImage(state); err != nil {
			t.Fatalf("a state that can't be read back: %v", err)
		}
	})
}

// FuzzAnswer feeds what a node that was asked says: any bytes are an answer, or an error.
func FuzzAnswer(f *testing.F) {
	for _, ans := range []*controllerpb.Answer{{Status: statusNotLeader, Leader: 3}, {Status: statusRefused, Error: &controllerpb.Error{Message: "no"}}} {
		b, err := seal(magicCall, ans)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[frameHead:])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var ans controllerpb.Answer
		if err := unseal(magicCall, "call", sealed(body), &ans); err != nil {
			return
		}
		if err := answerError(&ans); (err == nil) != (ans.Status == statusDone) {
			t.Fatalf("status %d: %v", ans.Status, err)
		}
	})
}
