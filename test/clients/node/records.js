// The records of the client matrix, what compares them, and what has leaders killed among them.
'use strict'

/** The client has no such thing. */
class Unsupported extends Error {}

/** Something other than expected came. */
class Failure extends Error {}

/** The broker has refused a record with MESSAGE_TOO_LARGE. */
class TooLarge extends Error {}

const log = (...what) => console.error(new Date().toISOString().slice(11, 23), ...what)
const sleep = (ms, what) => new Promise(resolve => setTimeout(resolve, ms, what))

/** A record that compresses well and that no other equals. */
function codecRecord(codec, i, base) {
  return {
    partition: 0,
    key: Buffer.from('key-' + String(i).padStart(4, '0')),
    value: Buffer.from(`value ${i} of ${codec}: ${'compressible '.repeat(12)}`),
    headers: [['number', Buffer.from(String(i))], ['codec', Buffer.from(codec)]],
    time: base + i * 1000,
  }
}

/** The time of the first record: a day ago, so that it is not the time of sending. */
const baseTime = () => (Math.floor(Date.now() / 1000) - 86_400) * 1000

function numbered(i, base) {
  const n = Buffer.from(String(i))
  return {
    partition: i % 3, key: n, value: Buffer.from(`record ${n} of the many that are looked at one by one, each of them`), headers: [['n', n]], time: base + i,
  }
}

function same(got, want) {
  const headers = h => h.map(([k, v]) => `${k}=${v}`).join()
  if (!want.key.equals(got.key) || !want.value.equals(got.value) || got.time !== want.time || headers(got.headers) !== headers(want.headers)) {
    const show = r => `"${r.key}"="${String(r.value).slice(0, 60)}" at ${r.time} with ${headers(r.headers)}`
    throw new Failure(`at offset ${got.offset}: ${show(got)}; sent: ${show(want)}`)
  }
}

/**
 * Compares a partition's records with those that were sent to it, in order and once. These clients read as members of groups only:
 * one that has to join again, its coordinator being dead, reads again from the beginning, and the same records must be there.
 */
class Checker {
  constructor(sent) {
    this.sent = sent
    this.next = 0
  }

  /** Says whether the record is a new one. */
  check(got) {
    if (got.offset > this.next) {
      throw new Failure(`offset ${got.offset} instead of ${this.next}`)
    }
    same(got, this.sent(got.offset))
    if (got.offset < this.next) {
      return false
    }
    this.next++
    return true
  }
}

/** Has a leader killed once a count reaches half; at three quarters (gate) a program waits until it is dead. */
class Killer {
  constructor(total, kill) {
    this.half = Math.floor(total / 2)
    this.gate = Math.floor((total * 3) / 4)
    this.count = 0
    this.dead = false
    this.started = false
    this.error = null
    this.kill = kill
  }

  add(n) {
    this.count += n
    if (this.count >= this.half && !this.started) {
      this.started = true
      this.kill().then(() => { this.dead = true }, e => { this.error = e })
    }
  }

  /** Throws what went wrong with the kill. */
  failed() {
    if (this.error) {
      throw this.error
    }
  }
}

/** Records on their way from a client's callbacks to next(): push waits while there are many, and returns false once it is closed. */
class Queue {
  constructor(most) {
    this.most = most
    this.items = []
    this.closed = false
    this.waiting = new Set()
  }

  wake() {
    const w = [...this.waiting]
    this.waiting.clear()
    w.forEach(f => f())
  }

  change(ms) {
    return new Promise(resolve => {
      const timer = setTimeout(resolve, ms)
      this.waiting.add(() => {
        clearTimeout(timer)
        resolve()
      })
    })
  }

  async push(item) {
    while (this.items.length >= this.most && !this.closed) {
      await this.change(1000)
    }
    if (this.closed) {
      return false
    }
    this.items.push(item)
    this.wake()
    return true
  }

  async next(ms) {
    const end = Date.now() + ms
    while (this.items.length === 0 && !this.closed && Date.now() < end) {
      await this.change(end - Date.now())
    }
    const item = this.items.shift() ?? null
    if (item) {
      this.wake()
    }
    return item
  }

  close() {
    this.closed = true
    this.wake()
  }
}

module.exports = { Checker, Killer, Queue, Failure, TooLarge, Unsupported, codecRecord, numbered, baseTime, same, log, sleep }
