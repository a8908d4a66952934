package multiraft

import (
	"context"
	"fmt"
	"log/slog"
)

// raftLogger adapts slog to raft's logger. Info and debug lines of ten thousand groups would drown everything else, so they
// go to debug level, which costs a check when disabled.
type raftLogger struct {
	l *slog.Logger
}

func (l *raftLogger) on(level slog.Level) bool { return l.l.Enabled(context.Background(), level) }

func (l *raftLogger) Debug(v ...any)                   { l.print(slog.LevelDebug-4, v) }
func (l *raftLogger) Debugf(format string, v ...any)   { l.printf(slog.LevelDebug-4, format, v) }
func (l *raftLogger) Info(v ...any)                    { l.print(slog.LevelDebug, v) }
func (l *raftLogger) Infof(format string, v ...any)    { l.printf(slog.LevelDebug, format, v) }
func (l *raftLogger) Warning(v ...any)                 { l.print(slog.LevelWarn, v) }
func (l *raftLogger) Warningf(format string, v ...any) { l.printf(slog.LevelWarn, format, v) }
func (l *raftLogger) Error(v ...any)                   { l.print(slog.LevelError, v) }
func (l *raftLogger) Errorf(format string, v ...any)   { l.printf(slog.LevelError, format, v) }

// Fatal and Panic are how the library reports a broken invariant. Both panic; the shard recovers and fences the group.
func (l *raftLogger) Fatal(v ...any)                 { panic(fmt.Sprint(v...)) }
func (l *raftLogger) Fatalf(format string, v ...any) { panic(fmt.Sprintf(format, v...)) }
func (l *raftLogger) Panic(v ...any)                 { panic(fmt.Sprint(v...)) }
func (l *raftLogger) Panicf(format string, v ...any) { panic(fmt.Sprintf(format, v...)) }

func (l *raftLogger) print(level slog.Level, v []any) {
	if l.on(level) {
		l.l.Log(context.Background(), level, "raft: "+fmt.Sprint(v...))
	}
}

func (l *raftLogger) printf(level slog.Level, format string, v []any) {
	if l.on(level) {
		l.l.Log(context.Background(), level, "raft: "+fmt.Sprintf(format, v...))
	}
}
