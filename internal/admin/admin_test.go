package admin

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/chronik-go/chronik/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestProbesAndMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "chronik_test"}, func() float64 { return 7 }))
	var ready atomic.Bool
	s, err := Start(Config{
		Addr: "127.0.0.1:0", Gatherer: reg, Logger: slog.New(slog.DiscardHandler), HeaderTimeout: time.Minute,
		Healthy: func() error { return nil },
		Ready: func() error {
			if !ready.Load() {
				return errors.New("waiting for peers")
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(path string) (int, string) {
		t.Helper()
		res, err := client.Get("http://" + s.Addr() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b)
	}
	if code, body := get("/readyz"); code != 503 || !strings.Contains(body, "waiting for peers") {
		t.Errorf("not ready: %d %q", code, body)
	}
	ready.Store(true)
	if code, _ := get("/readyz"); code != 200 {
		t.Errorf("ready: %d", code)
	}
	if code, _ := get("/healthz"); code != 200 {
		t.Errorf("healthy: %d", code)
	}
	if code, body := get("/metrics"); code != 200 || !strings.Contains(body, "chronik_test 7") {
		t.Errorf("metrics: %d %q", code, body)
	}
	if code, _ := get("/"); code != 404 {
		t.Errorf("unknown path: %d", code)
	}
	if _, err := Start(Config{Addr: s.Addr()}); err == nil || !strings.Contains(err.Error(), "--admin-addr") {
		t.Errorf("port in use: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
