package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Handler answers one request on the connection's writer goroutine. It may wait, bounded by ctx and by what the request
// says. It returns nil, nil when the request gets no answer, and an error only to close the connection.
type Handler func(b *Broker, ctx context.Context, rc *RequestContext, req kmsg.Request) (kmsg.Response, error)

// Starter is stage one of an API that enqueues on the connection's reader goroutine; it must not block. What it returns is
// stage two.
type Starter func(b *Broker, ctx context.Context, rc *RequestContext, req kmsg.Request) (finish func(ctx context.Context) (kmsg.Response, error), err error)

// api is one row of the range table: what is served. Never kmsg's MaxVersion: kmsg models unreleased versions and decodes
// removed ones. Minimums are API too (librdkafka 2.0.2 tests for exact overlap).
type api struct {
	key int16
	// min and max is what is accepted; a version outside closes the connection, as Kafka does.
	min, max int16
	// advertised is the minimum told to clients. It differs from min for Produce alone, which librdkafka must see from 0
	// or it drops compression (KAFKA-18659).
	advertised int16
	handle     Handler
	start      Starter // instead of handle
	// quick says that a request's answer waits for nothing: internal/server need not have another goroutine at hand. Nil: it may.
	quick func(rc *RequestContext, req kmsg.Request) bool
}

// alone is quick for what this node answers by itself: everywhere but in one-address mode, where other nodes may be asked.
func alone(rc *RequestContext, _ kmsg.Request) bool { return !rc.Mode.OneAddress }

// apis is every API served, by key. One row for each.
var apis []api

// An init function and not a literal: handlers refer to the table (ApiVersions lists it).
func init() {
	apis = []api{
		{key: 0, min: 3, advertised: 0, max: 13, start: startProduce},
		{key: 1, min: 4, advertised: 4, max: 18, handle: handleFetch},
		{key: 2, min: 1, advertised: 1, max: 11, handle: handleListOffsets},
		{key: 3, min: 0, advertised: 0, max: 13, handle: handleMetadata},
		{key: 8, min: 2, advertised: 2, max: 10, handle: handleOffsetCommit},
		{key: 9, min: 1, advertised: 1, max: 10, handle: handleOffsetFetch},
		{key: 10, min: 0, advertised: 0, max: 6, handle: handleFindCoordinator},
		{key: 11, min: 0, advertised: 0, max: 9, handle: handleJoinGroup},
		{key: 12, min: 0, advertised: 0, max: 4, handle: handleHeartbeat, quick: alone},
		{key: 13, min: 0, advertised: 0, max: 5, handle: handleLeaveGroup},
		{key: 14, min: 0, advertised: 0, max: 5, handle: handleSyncGroup},
		{key: 15, min: 0, advertised: 0, max: 6, handle: handleDescribeGroups},
		{key: 16, min: 0, advertised: 0, max: 5, handle: handleListGroups},
		{key: 18, min: 0, advertised: 0, max: 4, handle: handleApiVersions, quick: alone},
		{key: 19, min: 2, advertised: 2, max: 7, handle: handleCreateTopics},
		{key: 20, min: 1, advertised: 1, max: 6, handle: handleDeleteTopics},
		{key: 21, min: 0, advertised: 0, max: 2, handle: handleDeleteRecords},
		{key: 22, min: 0, advertised: 0, max: 5, handle: handleInitProducerID},
		{key: 23, min: 2, advertised: 2, max: 4, handle: handleOffsetForLeaderEpoch},
		{key: 32, min: 1, advertised: 1, max: 4, handle: handleDescribeConfigs},
		{key: 33, min: 0, advertised: 0, max: 2, handle: handleAlterConfigs},
		{key: 35, min: 1, advertised: 1, max: 5, handle: handleDescribeLogDirs},
		{key: 37, min: 0, advertised: 0, max: 3, handle: handleCreatePartitions},
		{key: 42, min: 0, advertised: 0, max: 2, handle: handleDeleteGroups},
		{key: 43, min: 0, advertised: 0, max: 2, handle: handleElectLeaders},
		{key: 44, min: 0, advertised: 0, max: 1, handle: handleIncrementalAlterConfigs},
		{key: 45, min: 0, advertised: 0, max: 1, handle: handleAlterPartitionReassignments},
		{key: 46, min: 0, advertised: 0, max: 0, handle: handleListPartitionReassignments},
		{key: 47, min: 0, advertised: 0, max: 0, handle: handleOffsetDelete},
		{key: 55, min: 0, advertised: 0, max: 2, handle: handleDescribeQuorum},
		{key: 60, min: 0, advertised: 0, max: 2, handle: handleDescribeCluster},
		{key: 61, min: 0, advertised: 0, max: 0, handle: handleDescribeProducers},
		{key: 64, min: 0, advertised: 0, max: 0, handle: handleUnregisterBroker},
		{key: 68, min: 0, advertised: 0, max: 1, handle: handleConsumerGroupHeartbeat, quick: quickConsumerGroupHeartbeat},
		{key: 69, min: 0, advertised: 0, max: 1, handle: handleConsumerGroupDescribe},
		{key: 74, min: 0, advertised: 0, max: 1, handle: handleListConfigResources},
		{key: 75, min: 0, advertised: 0, max: 0, handle: handleDescribeTopicPartitions},
	}
	indexAPIs()
}

// byKey finds a row; nil where a key is not served.
var byKey [keyLimit]*api

// keyLimit is above every key that is served.
const keyLimit = 128

func indexAPIs() {
	for i := range apis {
		byKey[apis[i].key] = &apis[i]
	}
}

// lookupAPI returns the row that serves version of key, or nil.
func lookupAPI(key, version int16) *api {
	if key < 0 || int(key) >= len(byKey) {
		return nil
	}
	a := byKey[key]
	if a == nil || version < a.min || version > a.max {
		return nil
	}
	return a
}
