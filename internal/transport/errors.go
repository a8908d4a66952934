package transport

import (
	"errors"
	"fmt"
)

var (
	// ErrPeerUnknown says that no peer of that id was added; nothing was sent.
	ErrPeerUnknown = errors.New("peer unknown")
	// ErrPeerDown says that the peer is not connected; nothing was sent.
	ErrPeerDown = errors.New("peer not connected")
	// ErrNotSent says that the request was certainly not handled by the peer.
	ErrNotSent = errors.New("not sent")
	// ErrUnknownOutcome says that the request was sent and its answer will not come: it may have been handled or not.
	ErrUnknownOutcome = errors.New("outcome unknown")
	// ErrOverloaded says that a queue's cap in bytes or requests is reached; nothing was sent.
	ErrOverloaded = errors.New("too many bytes in flight")
	// ErrTooLarge says that a body exceeds MaxBodyBytes; nothing was sent.
	ErrTooLarge = errors.New("message too large")
	// ErrClosed says that the client or server was closed.
	ErrClosed = errors.New("transport closed")
	// ErrFrame matches every error of decoding a frame: it was damaged, or made by something that is not Chronik.
	ErrFrame = errors.New("bad frame")
)

// RemoteError is the error with which a peer's handler answered a Call or a Forward: the request was handled, and failed.
//
// A handler that returns an error which wraps a *RemoteError passes its Code on; any other error travels with code 0.
type RemoteError struct {
	Node    int32  // who answered
	Method  uint16 // what was asked
	Code    uint32 // the handler's own numbering; 0 if it gave none
	Message string
}

// Error implements error.
func (e *RemoteError) Error() string {
	if e.Code != 0 {
		return fmt.Sprintf("node %d: method %d: %s (code %d)", e.Node, e.Method, e.Message, e.Code)
	}
	return fmt.Sprintf("node %d: method %d: %s", e.Node, e.Method, e.Message)
}

// remoteCode returns what of a handler's error crosses the network.
func remoteCode(err error) (code uint32, message string) {
	var re *RemoteError
	if errors.As(err, &re) {
		return re.Code, re.Message
	}
	return 0, err.Error()
}

// RefusedError says that a peer and this node do not belong together: another cluster, another node than the one meant, or
// protocol versions that don't overlap. Trying again does not help until someone changes a configuration.
type RefusedError struct {
	Node   int32  // the peer meant
	Addr   string // its address
	Reason string // a sentence for a person
}

// Error implements error.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("peer %d at %s: %s", e.Node, e.Addr, e.Reason)
}
