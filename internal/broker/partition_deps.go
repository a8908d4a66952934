package broker

import (
	"github.com/chronik-go/chronik/internal/partition"
)

// What partitions are asked and answer: internal/partition's own types.
type (
	ProduceResult = partition.ProduceResult
	FetchRequest  = partition.FetchRequest
	FetchResult   = partition.FetchResult
	EpochEnd      = partition.EpochEnd
)
