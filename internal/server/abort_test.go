package server

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// A client whose first request is not answered, because the server stops, finds its connection reset, also if it was told which versions are spoken. An orderly end it would take for a broker
// that wants SASL or TLS (franz-go gives its records up, of which the next broker would have taken them): TestMoveSurvivesRestarts failed of that.
func TestAStoppingServerResetsWhoWasNeverAnswered(t *testing.T) {
	s := start(t, newEcho(), nil)
	fresh, greeted, served := dial(t, s), dial(t, s), dial(t, s)
	send(t, greeted, request(apiVersions, 1, []byte("one")))
	if corr, _ := answer(t, greeted); corr != 1 {
		t.Fatalf("answered %d", corr)
	}
	send(t, served, request(0, 1, []byte("one")))
	if corr, _ := answer(t, served); corr != 1 {
		t.Fatalf("answered %d", corr)
	}
	until(t, "all are accepted", func() bool { return s.Connections() == 3 })
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	for what, nc := range map[string]net.Conn{"never answered": fresh, "told the versions": greeted} {
		_ = nc.SetReadDeadline(time.Now().Add(bound))
		if _, err := nc.Read(b[:]); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_ = served.SetReadDeadline(time.Now().Add(bound))
	if _, err := served.Read(b[:]); !errors.Is(err, io.EOF) {
		t.Errorf("answered before: %v", err)
	}
}
