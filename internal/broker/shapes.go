package broker

import (
	"strconv"
	"strings"
)

// shape is a structure of the protocol as far as its bytes' extent goes.
type shape struct {
	fields []field
	tagged map[uint32]*shape
	bare   bool // a bare value: no tags follow it
	tail   bool // a tag's value that is a structure: tags follow it
}

type field struct {
	kind     byte
	min, max int16
	sub      *shape
}

// shapes holds every request that is served, in a small language: 1 2 4 8 are integers (or a bool) of so many bytes, u a
// UUID, s a string, B bytes, [ ] an array of structures, ( ) an array of bare values, ? { } a structure behind a presence
// byte, & { } one in place, #n{ } the tag n (~ in it: it is a structure with tags of its own). A field may be preceded by its versions: "9+", "0-12". TestShapesMatchTheCodec compares each with
// what kmsg writes.
var shapes = parseShapes(map[int16]string{
	0:  "s 2 4 [ 0-12 s 13+ u [ 4 B ] ]",
	1:  "0-14 4 4 4 4 1 7+ 4 7+ 4 [ 0-12 s 13+ u [ 4 9+ 4 8 12+ 4 5+ 8 4 #0{ u } #1{ 8 } ] ] 7+ [ 0-12 s 13+ u ( 4 ) ] 11+ s #0{ s } #1{ 4 8 ~ }",
	2:  "4 2+ 1 [ s [ 4 4+ 4 8 ] ] 10+ 4",
	3:  "[ 10+ u s ] 4+ 1 8-10 1 8+ 1",
	8:  "s 1+ 4 1+ s 7+ s 2-4 8 [ 0-9 s 10+ u [ 4 8 6+ 4 s ] ]",
	9:  "0-7 s 0-7 [ s ( 4 ) ] 8+ [ s 9+ s 9+ 4 [ 0-9 s 10+ u ( 4 ) ] ] 7+ 1",
	10: "0-3 s 1+ 1 4+ ( s )",
	11: "s 4 1+ 4 s 5+ s s [ s B ] 8+ s",
	12: "s 4 s 3+ s",
	13: "s 0-2 s 3+ [ s s 5+ s ]",
	14: "s 4 s 3+ s 5+ s 5+ s [ s B ]",
	15: "( s ) 3+ 1",
	16: "4+ ( s ) 5+ ( s )",
	18: "3+ s 3+ s",
	19: "[ s 4 2 [ 4 ( 4 ) ] [ s s ] ] 4 1+ 1",
	20: "0-5 ( s ) 6+ [ s u ] 4",
	21: "[ s [ 4 8 ] ] 4",
	22: "s 4 3+ 8 3+ 2",
	23: "3+ 4 [ s [ 4 2+ 4 4 ] ]",
	32: "[ 1 s ( s ) ] 1+ 1 3+ 1",
	33: "[ 1 s [ s s ] ] 1",
	35: "[ s ( 4 ) ]",
	37: "[ s 4 [ ( 4 ) ] ] 4 1",
	42: "( s )",
	43: "1+ 1 [ s ( 4 ) ] 4",
	44: "[ 1 s [ s 1 s ] ] 1",
	45: "4 1+ 1 [ s [ 4 ( 4 ) ] ]",
	46: "4 [ s ( 4 ) ]",
	47: "s [ s [ 4 ] ]",
	55: "[ s [ 4 ] ]",
	60: "1 1+ 1 2+ 1",
	61: "[ s ( 4 ) ]",
	64: "4",
	68: "s s 4 s s 4 ( s ) 1+ s s [ u ( 4 ) ]",
	69: "( s ) 1",
	74: "1+ ( 1 )",
	75: "[ s ] 4 ? { s 4 }",
})

// answerShapes holds the answers that this node takes from other nodes (askPeer), in the same language.
var answerShapes = parseShapes(map[int16]string{
	1:  "1+ 4 7+ 2 7+ 4 [ 0-12 s 13+ u [ 4 2 8 4+ 8 5+ 8 4+ [ 8 8 ] 11+ 4 B #0{ 4 8 ~ } #1{ 4 4 ~ } #2{ 8 4 ~ } ] ] #0{ [ 4 s 4 s ] }",
	2:  "2+ 4 [ s [ 4 2 0-0 ( 8 ) 1+ 8 1+ 8 4+ 4 ] ]",
	8:  "3+ 4 [ 0-9 s 10+ u [ 4 2 ] ]",
	9:  "3+ 4 0-7 [ s [ 4 8 5+ 4 s 2 ] ] 2-7 2 8+ [ s [ 0-9 s 10+ u [ 4 8 4 s 2 ] ] 2 ]",
	11: "2+ 4 2 4 7+ s s s 9+ 1 s [ s 5+ s B ]",
	12: "1+ 4 2",
	13: "1+ 4 2 3+ [ s s 2 ]",
	14: "1+ 4 2 5+ s 5+ s B",
	15: "1+ 4 [ 2 6+ s s s s s [ s 4+ s s s B B ] 3+ 4 ]",
	16: "1+ 4 2 [ s s 4+ s 5+ s ]",
	21: "4 [ s [ 4 8 2 ] ]",
	23: "2+ 4 [ s [ 2 4 1+ 4 8 ] ]",
	42: "4 [ s 2 3+ s ]",
	43: "4 1+ 2 [ s [ 4 2 s ] ]",
	47: "2 4 [ s [ 4 2 ] ]",
	55: "2 2+ s [ s [ 4 2 2+ s 4 4 8 [ 4 2+ u 8 1+ 8 1+ 8 ] [ 4 2+ u 8 1+ 8 1+ 8 ] ] ] 2+ [ 4 [ s s 2 ] ]",
	61: "4 [ s [ 4 2 s [ 8 4 4 8 4 8 ] ] ]",
	68: "4 2 s s 4 4 ? { [ u ( 4 ) ] }",
	69: "4 [ 2 s s s 4 4 s [ s s s 4 s s ( s ) s & { [ u s ( 4 ) ] } & { [ u s ( 4 ) ] } 1+ 1 ] 4 ]",
})

func parseShapes(src map[int16]string) map[int16]*shape {
	out := make(map[int16]*shape, len(src))
	for key, text := range src {
		tokens := strings.Fields(text)
		out[key] = parseShape(&tokens, "")
	}
	return out
}

// parseShape takes tokens up to end.
func parseShape(tokens *[]string, end string) *shape {
	sh := &shape{}
	lo, hi := int16(0), int16(1<<15-1)
	for len(*tokens) > 0 {
		t := (*tokens)[0]
		*tokens = (*tokens)[1:]
		switch {
		case t == end:
			return sh
		case t == "[":
			sh.fields = append(sh.fields, field{'[', lo, hi, parseShape(tokens, "]")})
		case t == "(":
			sub := parseShape(tokens, ")")
			sub.bare = true
			sh.fields = append(sh.fields, field{'(', lo, hi, sub})
		case t == "?", t == "&":
			*tokens = (*tokens)[1:] // "{"
			sh.fields = append(sh.fields, field{t[0], lo, hi, parseShape(tokens, "}")})
		case t == "~": // tags follow within a tag's structure
			sh.tail = true
			continue
		case t[0] == '#':
			tag, _ := strconv.Atoi(t[1 : len(t)-1])
			sub := parseShape(tokens, "}")
			// A tag's value is bare unless it is a structure of its own.
			sub.bare = !sub.tail
			if sh.tagged == nil {
				sh.tagged = map[uint32]*shape{}
			}
			sh.tagged[uint32(tag)] = sub
		case strings.HasSuffix(t, "+"):
			n, _ := strconv.Atoi(t[:len(t)-1])
			lo = int16(n)
			continue
		case len(t) > 1 && strings.Contains(t, "-"):
			a, b, _ := strings.Cut(t, "-")
			x, _ := strconv.Atoi(a)
			y, _ := strconv.Atoi(b)
			lo, hi = int16(x), int16(y)
			continue
		default:
			sh.fields = append(sh.fields, field{kind: t[0], min: lo, max: hi})
		}
		lo, hi = 0, 1<<15-1
	}
	return sh
}
