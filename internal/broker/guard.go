package broker

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A request's bytes are walked before kmsg decodes them, because kmsg trusts two claims: an array's length up to the bytes
// that remain (100 MiB of them are elements of 100 bytes each, 10 GB allocated for nothing), and a count of tags without any
// bound (four thousand million turns of a loop for five bytes). The walk allocates nothing.

var (
	errShort    = errors.New("it ends too early")
	errElements = fmt.Errorf("it holds more than %d array elements", maxElements)
	errString   = fmt.Errorf("it holds a string of more than %d bytes", maxString)
)

// maxString is how many bytes a string has at most, as in Kafka, however its length is written: in other versions, and in the records of
// groups, two bytes are all there is for that, and a longer name would be read as another, with what follows for fields.
const maxString = 1<<15 - 1

// maxElements bounds the array elements of one request, all levels together: some 50 MB decoded. 2,000 topics with
// all their configs, or a fetch of 100,000 partitions, are well within.
const maxElements = 250_000

// guard checks that body is one request of key and version, structurally, and counts its arrays' elements.
func guard(key, version int16, flexible bool, body []byte) (elements int, err error) {
	return guardBy(shapes[key], key, version, flexible, body)
}

func guardBy(sh *shape, key, version int16, flexible bool, body []byte) (elements int, err error) {
	if sh == nil {
		return 0, fmt.Errorf("no shape is known for API key %d", key)
	}
	s := scanner{src: body, version: version, flexible: flexible, elements: maxElements}
	s.fields(sh)
	return maxElements - s.elements, s.err
}

// scanner walks bytes by a shape.
type scanner struct {
	src      []byte
	version  int16
	flexible bool
	elements int
	err      error
}

func (s *scanner) fail(err error) {
	if s.err == nil {
		s.err = err
	}
	s.src = nil
}

func (s *scanner) skip(n int64) {
	if n < 0 || n > int64(len(s.src)) {
		s.fail(errShort)
		return
	}
	s.src = s.src[n:]
}

func (s *scanner) uvarint() uint32 {
	v, n := binary.Uvarint(s.src)
	if n <= 0 || n > 5 || v > 1<<32-1 {
		s.fail(errShort)
		return 0
	}
	s.src = s.src[n:]
	return uint32(v)
}

// length reads a length of the wide (int32) or narrow (int16) kind; -1 is null.
func (s *scanner) length(wide bool) int64 {
	switch {
	case s.flexible:
		return int64(s.uvarint()) - 1
	case wide:
		if len(s.src) < 4 {
			s.fail(errShort)
			return 0
		}
		n := int32(binary.BigEndian.Uint32(s.src))
		s.src = s.src[4:]
		return int64(n)
	default:
		if len(s.src) < 2 {
			s.fail(errShort)
			return 0
		}
		n := int16(binary.BigEndian.Uint16(s.src))
		s.src = s.src[2:]
		return int64(n)
	}
}

// fields walks one structure and its tags.
func (s *scanner) fields(sh *shape) {
	for i := range sh.fields {
		f := &sh.fields[i]
		if s.version < f.min || s.version > f.max || s.err != nil {
			continue
		}
		switch f.kind {
		case '1', '2', '4', '8':
			s.skip(int64(f.kind - '0'))
		case 'u':
			s.skip(16)
		case 's', 'B': // a string, or bytes; either may be null here, kmsg and the handlers know where it may not
			n := s.length(f.kind == 'B')
			if n > maxString && f.kind == 's' {
				s.fail(errString)
			}
			if n > 0 {
				s.skip(n)
			}
		case '[', '(':
			s.array(f)
		case '&': // a structure in place
			s.fields(f.sub)
		case '?': // a structure behind a presence byte
			if len(s.src) == 0 {
				s.fail(errShort)
				return
			}
			present := int8(s.src[0]) != -1
			s.src = s.src[1:]
			if present {
				s.fields(f.sub)
			}
		}
	}
	if s.flexible && s.err == nil && !sh.bare {
		s.tags(sh)
	}
}

func (s *scanner) array(f *field) {
	n := s.length(true)
	if n <= 0 {
		return
	}
	if n > int64(s.elements) {
		s.fail(errElements)
		return
	}
	s.elements -= int(n)
	for ; n > 0 && s.err == nil; n-- {
		s.fields(f.sub)
	}
}

// tags walks a section of tagged fields. Those whose shape is known are walked too, as kmsg decodes them.
func (s *scanner) tags(sh *shape) {
	n := int64(s.uvarint())
	if n > int64(s.elements) || n > int64(len(s.src)) {
		s.fail(errShort)
		return
	}
	s.elements -= int(n)
	for ; n > 0 && s.err == nil; n-- {
		tag := s.uvarint()
		size := int64(s.uvarint())
		if size > int64(len(s.src)) {
			s.fail(errShort)
			return
		}
		if sh != nil && sh.tagged[tag] != nil {
			inner := scanner{src: s.src[:size], version: s.version, flexible: true, elements: s.elements}
			inner.fields(sh.tagged[tag])
			if inner.err != nil {
				s.fail(inner.err)
				return
			}
		}
		s.skip(size)
	}
}
