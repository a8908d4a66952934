package partition

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// A command is an entry that is no record batch. Its frame has a batch's outline, so that whoever walks entry data can tell
// them apart at byte 16, where a batch has its magic. Big endian:
//
//	 0  int64   argument
//	 8  int32   length of what follows byte 12: 12
//	12  int32   leader epoch
//	16  uint8   0x80
//	17  uint8   kind
//	18  uint16  0
//	20  uint32  CRC-32C of bytes 0 to 19
const (
	commandSize  = 24
	commandMark  = 0x80
	markPosition = 16
)

type commandKind uint8

const (
	// commandLogStart moves the log start to the argument, an offset.
	commandLogStart commandKind = 1
	// commandExpireProducers forgets producers whose last batch is at or below the argument, a raft index.
	commandExpireProducers commandKind = 2
)

type command struct {
	kind commandKind
	arg  int64
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func isCommand(data []byte) bool {
	return len(data) > markPosition && data[markPosition] == commandMark
}

func (c command) encode(epoch int32) []byte {
	b := make([]byte, 0, commandSize)
	b = binary.BigEndian.AppendUint64(b, uint64(c.arg))
	b = binary.BigEndian.AppendUint32(b, commandSize-12)
	b = binary.BigEndian.AppendUint32(b, uint32(epoch))
	b = append(b, commandMark, byte(c.kind), 0, 0)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodeCommand is strict: a command that is not understood can't be skipped, since other replicas may understand it.
func decodeCommand(b []byte) (command, error) {
	if len(b) != commandSize || !isCommand(b) || binary.BigEndian.Uint32(b[8:]) != commandSize-12 || b[18] != 0 || b[19] != 0 {
		return command{}, fmt.Errorf("%w: frame of %d bytes", errCommand, len(b))
	}
	if crc := crc32.Checksum(b[:20], castagnoli); crc != binary.BigEndian.Uint32(b[20:]) {
		return command{}, fmt.Errorf("%w: CRC", errCommand)
	}
	c := command{kind: commandKind(b[17]), arg: int64(binary.BigEndian.Uint64(b))}
	switch c.kind {
	case commandLogStart, commandExpireProducers:
		if c.arg < 0 {
			return command{}, fmt.Errorf("%w: negative argument", errCommand)
		}
		return c, nil
	}
	return command{}, fmt.Errorf("%w: kind %d; a newer version of the program wrote it", errCommand, c.kind)
}
