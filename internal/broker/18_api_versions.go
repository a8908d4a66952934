package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// ApiVersions (key 18), 0–4. KIP-35, KIP-511, KIP-584.
//
// v0  the table
// v1  throttle time
// v3  flexible body (the response header stays v0: the client does not know yet what it may parse), client software name,
//     features; features whose minimum is 0 are left out
// v4  features whose minimum is 0 are listed (KIP-1022)
//
// An unknown version is answered in v0 with error 35 and exactly one key, this one: clients take it to find a version, and
// franz-go takes a longer list as final.

// features is what SupportedFeatures says: name and range; the highest is what every cluster has. group.version 1 goes with
// ConsumerGroupHeartbeat, and transaction.version with transactions, which are not served yet.
var features = []feature{{"group.version", 0, 1}}

type feature struct {
	name     string
	min, max int16
}

func handleApiVersions(b *Broker, _ context.Context, rc *RequestContext, req kmsg.Request) (kmsg.Response, error) {
	resp := kmsg.NewPtrApiVersionsResponse()
	resp.SetVersion(rc.Version)
	if v := req.(*kmsg.ApiVersionsRequest); rc.Version >= 3 && !(softwareName(v.ClientSoftwareName) && softwareName(v.ClientSoftwareVersion)) {
		b.metrics.refusal(rc.Key, kerr.InvalidRequest)
		resp.ErrorCode = kerr.InvalidRequest.Code
		return resp, nil
	}
	for i := range apis {
		a := &apis[i]
		k := kmsg.NewApiVersionsResponseApiKey()
		k.ApiKey, k.MinVersion, k.MaxVersion = a.key, a.advertised, a.max
		resp.ApiKeys = append(resp.ApiKeys, k)
	}
	for _, f := range features {
		if f.min == 0 && rc.Version < 4 {
			continue
		}
		s := kmsg.NewApiVersionsResponseSupportedFeature()
		s.Name, s.MinVersion, s.MaxVersion = f.name, f.min, f.max
		resp.SupportedFeatures = append(resp.SupportedFeatures, s)
	}
	for _, f := range features {
		s := kmsg.NewApiVersionsResponseFinalizedFeature()
		s.Name, s.MinVersionLevel, s.MaxVersionLevel = f.name, f.max, f.max
		resp.FinalizedFeatures = append(resp.FinalizedFeatures, s)
	}
	// Clients ignore −1 and expect an epoch that never falls: the metadata log's index is one.
	resp.FinalizedFeaturesEpoch = int64(b.cfg.Cluster.Image().Index)
	return resp, nil
}

// unsupportedApiVersions is the answer to an ApiVersions request of a version outside the table (KIP-511).
func unsupportedApiVersions() kmsg.Response {
	resp := kmsg.NewPtrApiVersionsResponse()
	resp.SetVersion(0)
	resp.ErrorCode = kerr.UnsupportedVersion.Code
	k := kmsg.NewApiVersionsResponseApiKey()
	k.ApiKey, k.MinVersion, k.MaxVersion = 18, 0, byKey[18].max
	resp.ApiKeys = append(resp.ApiKeys, k)
	return resp
}

// softwareName checks a client's name or version for itself, as KIP-511 wants them: letters, digits, and - or . inside.
func softwareName(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case (c == '-' || c == '.') && i > 0 && i < len(s)-1:
		default:
			return false
		}
	}
	return s != ""
}
