package broker

// ProduceResult is what became of one batch.
type ProduceResult struct {
	// BaseOffset is the first record's offset; of a duplicate, the one it was first given.
	BaseOffset int64
	// AppendTime is the time the leader stamped, in ms; -1 for CreateTime.
	AppendTime int64
	LogStart   int64
	Err        error
	// RecordErrors names the records that caused Err, by index in the batch.
	RecordErrors []RecordError
}

// RecordError is one record's share in a refusal (KIP-467).
type RecordError struct {
	Index   int32
	Message string
}

// FetchRequest asks a partition for committed batches.
type FetchRequest struct {
	Offset int64
	// MaxBytes bounds the answer; the first batch is returned even when it is larger, unless MinOne is false.
	MaxBytes int
	// MinOne asks for at least one batch if there is one.
	MinOne bool
	// CurrentLeaderEpoch and LastFetchedEpoch are the client's, -1 if it does not say (KIP-320, KIP-595).
	CurrentLeaderEpoch, LastFetchedEpoch int32
	// Buf is appended to and may be grown.
	Buf []byte
}

// FetchResult is what a fetch found. On an error it holds nothing.
type FetchResult struct {
	Records                             []byte
	HighWatermark, LastStable, LogStart int64
	// Diverging is set when the client's log parted from this one (KIP-595).
	Diverging *EpochEnd
}

// EpochEnd is a leader epoch and its end offset.
type EpochEnd struct {
	Epoch     int32
	EndOffset int64
}

// Waiter fires when a partition it waits on has something to tell.
type Waiter struct {
	fire func()
}

// NewWaiter makes a waiter; fire must not block and may be called several times, from anywhere.
func NewWaiter(fire func()) *Waiter { return &Waiter{fire: fire} }

// Fire calls the function.
func (w *Waiter) Fire() { w.fire() }
