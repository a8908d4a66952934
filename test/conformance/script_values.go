package conformance

import (
	"fmt"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/chronik-go/chronik/internal/config"
)

// probes are values that a config may or may not take.
var probes = []string{"", " ", "x", "true", "TRUE", " false ", "1.5", "1e3", "-1", "-2", "-3", "0", "1", " 7 ", "+7", "07", "1_000", "4", "9", "10", "17", "18", "22", "23", "-131072", "-131073",
	"13", "14", "60000", "1048575", "1048576", "2147483647", "2147483648", "-2147483648", "-2147483649", "9223372036854775807", "9223372036854775808", "-9223372036854775808",
	"0.5", "-0.5", "1.0", "1.01", "NaN", "Infinity", "-0",
	"delete", "compact", "compact,delete", "delete,delete", "delete,", ",", "DELETE", " compact , delete ", "none", "compact,none",
	"producer", "uncompressed", "gzip", "snappy", "lz4", "zstd", "ZSTD", "CreateTime", "LogAppendTime", "createtime",
	"*", "*,*", "0:1", "0:1,1:2", "0:1,", "0:1,0:1", "0:", ":1", "0:1:2", "a:b", "*,0:1", " 0:1 , 1:2 ", "-1:1"}

// valueCases tries every config of topics, and the dynamic ones of brokers, with every probe, and changes nothing.
func valueCases() []testCase {
	try := func(s *scene, t kmsg.ConfigResourceType, name, config string) {
		var took []string
		var codes []int16
		for _, v := range probes {
			req := edits(t, name, edit{0, config, &v})
			req.Version, req.ValidateOnly = s.v, true
			if code := s.must(1, req).(*kmsg.IncrementalAlterConfigsResponse).Resources[0].ErrorCode; code == 0 {
				took = append(took, fmt.Sprintf("%q", v))
			} else if !slices.Contains(codes, code) {
				codes = append(codes, code)
			}
		}
		slices.Sort(codes)
		s.record(config, map[string]tree{"taken": strings.Join(took, " "), "refused": fmt.Sprint("with ", codes)})
	}
	return []testCase{
		{name: "values of topics", from: 1, play: func(s *scene) {
			s.topic(s.name("t"), 1)
			for _, d := range config.Topics.Defs() {
				try(s, kmsg.ConfigResourceTypeTopic, s.name("t"), d.Name)
			}
		}},
		{name: "values of a broker", from: 1, play: func(s *scene) {
			for _, d := range config.Brokers.Defs() {
				if !d.ReadOnly && !d.Internal {
					try(s, kmsg.ConfigResourceTypeBroker, "1", d.Name)
				}
			}
		}},
	}
}
