package record

// Sum returns 64 bits that stand for a batch and its place: base offset, length, leader epoch and CRC, which between them decide
// every byte of a sound batch. The sums of batches are added (mod 2⁶⁴): a batch's offset is in its own, so that their order is,
// too, and the sum over any range of a log is the difference of the sums at its ends, whatever they began with.
func Sum(h Header) uint64 {
	x := mix(uint64(h.BaseOffset) + 0x9e3779b97f4a7c15)
	x = mix(x ^ uint64(uint32(h.Length))<<32 ^ uint64(h.CRC))
	return mix(x ^ uint64(uint32(h.LeaderEpoch))<<8 ^ uint64(uint8(h.Magic)))
}

// mix is the finaliser of splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
