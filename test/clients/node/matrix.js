// The cases of the client matrix for clients written in JavaScript: see ../README.md.
//
// A client's program hands main() a driver, an object with the client's own calls:
//
//   client, version
//   producer(codec, maxBytes)          with send(topic, records), whose promise is kept when all are acknowledged, and close()
//   reader(topic, starts)              of all partitions of the topic, each from its offset in starts (a Map) or the beginning, with
//                                      next(ms), whose promise is of a record or null, and close()
//   join(group, topic)                 a reader that begins where the group is, else at the beginning, and has owned() and
//                                      commit(Map of partition to offset); close() leaves the group
//   createTopic(topic, partitions, replicas, configs), describeTopic(topic) -> [partitions, replicas], deleteTopic(topic),
//   addPartitions(topic, total), nodes(), topicConfig(topic, name), setTopicConfig(topic, name, value), brokerConfig(node, name),
//   topics(), groups(), describeGroup(group) -> [state, members], deleteGroup(group), committed(group, topic) -> Map, offsets(topic, at) -> Map,
//   deleteRecords(topic, partition, before), close()
//   joinConsumer(group, topic), groupType(group)
//                                      join by the consumer protocol (KIP-848), and the type that the group has: only with the case
//                                      group-consumer
//
// Offsets and times (milliseconds) are numbers here. What a client cannot do throws Unsupported.
'use strict'

const { Checker, Killer, Failure, TooLarge, Unsupported, codecRecord, numbered, baseTime, same, log, sleep } = require('./records')

const EARLIEST = -2
const LATEST = -1
const CASE_MS = 300_000
const CLOSE_MS = 120_000
const MAIN_PARTITIONS = 6
const MAIN_STEP = 600 // records between two rebalances
const RECORD_PARTITIONS = 3
const SEND = 200 // records in one call of a producer's
const UNDER_WAY = 5000 // records sent and not acknowledged

const show = x => JSON.stringify(x instanceof Map ? [...x].sort((a, b) => a[0] - b[0]) : x)
const range = (from, to) => Array.from({ length: to - from }, (_, i) => from + i)

/** Uses a client's thing and closes it, within a bound. What went wrong before is what counts. */
async function using(thing, use) {
  let failed
  try {
    await use(thing)
  } catch (e) {
    failed = e
    log(e.stack)
  }
  const closed = thing.close().catch(e => { failed ??= e })
  if ((await Promise.race([closed, sleep(CLOSE_MS, 'late')])) === 'late') {
    failed ??= new Failure('a producer or consumer does not end')
  }
  if (failed) {
    throw failed
  }
}

/** A member of a group that is read as records come. */
class Loop {
  constructor(join, group, topic, seen) {
    this.ended = false
    this.error = null
    this.owned = []
    this.done = this.run(join, group, topic, seen).catch(e => {
      log('a member ended:', e.stack)
      this.error = e
    })
  }

  async run(join, group, topic, seen) {
    await using(await join(group, topic), async member => {
      while (!this.ended) {
        const r = await member.next(200)
        this.owned = member.owned()
        if (r) {
          seen.add(r.value.toString())
        }
      }
    })
  }

  async leave() {
    this.ended = true
    await this.done
    if (this.error) {
      throw this.error
    }
  }
}

class Suite {
  constructor(driver) {
    this.d = driver
    this.prefix = process.env.PREFIX
    this.lines = Number(process.env.LINES)
    this.end = 0
  }

  topic(name) {
    return this.prefix + '.' + name
  }

  check(what) {
    if (Date.now() > this.end) {
      throw new Failure(what + ': not in time')
    }
  }

  async kill(topic, partition) {
    const res = await fetch(process.env.CONTROL + '/kill?' + new URLSearchParams({ topic, partition }), { method: 'POST' })
    const text = await res.text()
    if (!res.ok) {
      throw new Failure('killing the leader: ' + text)
    }
    log('killed', text)
  }

  /** Looks until what is there. A change is made before, and again every few seconds: its answer may get lost with a node. */
  async until(what, look, change) {
    let changed = 0
    let said
    for (;;) {
      let err = null
      const attempt = async f => {
        try {
          return await f()
        } catch (e) {
          if (e instanceof Unsupported) {
            throw e
          }
          err = e
        }
      }
      if (change && Date.now() > changed + 5000) {
        changed = Date.now()
        await attempt(change)
        if (err) {
          log(what + ':', err.message)
        }
      }
      const got = await attempt(look)
      if (got !== undefined && got !== null && got !== false) {
        return got
      }
      if (String(err) !== said) {
        said = String(err)
        log(what + ': not yet:', said)
      }
      if (Date.now() > this.end) {
        throw new Failure(`${what} does not come: ${err}`)
      }
      await sleep(100)
    }
  }

  is(want, get) {
    return async () => {
      const got = await get()
      if (show(got) !== show(want)) {
        throw new Failure(`${show(got)}, not ${show(want)}`)
      }
      return true
    }
  }

  create(topic, partitions) {
    return this.until(topic, this.is([partitions, 3], () => this.d.describeTopic(topic)), () => this.d.createTopic(topic, partitions, 3, {}))
  }

  offsets(topic, at) {
    return this.until('an answer about offsets', () => this.d.offsets(topic, at))
  }

  async send(codec, topic, records) {
    await using(await this.d.producer(codec, 1 << 20), async p => {
      for (let i = 0; i < records.length; i += SEND) {
        await p.send(topic, records.slice(i, i + SEND))
      }
    })
  }

  async compare(topic, records) {
    await using(await this.d.reader(topic, new Map()), async r => {
      const c = new Checker(i => records[i])
      while (c.next < records.length) {
        const got = await r.next(1000)
        if (got) {
          c.check(got)
        }
        this.check('record ' + c.next)
      }
    })
  }

  async createTopic() {
    await this.create(this.topic('main'), MAIN_PARTITIONS)
  }

  async produce(codec) {
    const topic = this.topic(codec)
    const base = baseTime()
    await this.create(topic, 1)
    const records = range(0, 1000).map(i => codecRecord(codec, i, base))
    await this.send(codec, topic, records)
    await this.compare(topic, records)
  }

  group() {
    return this.rebalance(this.topic('main'), this.topic('group'), (g, t) => this.d.join(g, t), async () => {})
  }

  async groupConsumer() {
    const topic = this.topic('group-consumer')
    await this.create(topic, MAIN_PARTITIONS)
    const typed = () => this.until("the group's type", this.is('CONSUMER', () => this.d.groupType(topic)))
    await this.rebalance(topic, topic, (g, t) => this.d.joinConsumer(g, t), typed)
  }

  /** Two members, the second of which comes later and leaves; joined is called while both are there. */
  async rebalance(topic, group, join, joined) {
    const seen = new Set()
    const base = baseTime()
    const step = async i => {
      await this.send('none', topic, range(i * MAIN_STEP, (i + 1) * MAIN_STEP).map(n => ({
        partition: n % MAIN_PARTITIONS, key: Buffer.from(String(n)), value: Buffer.from('main ' + n), headers: [], time: base + n,
      })))
      await this.until('the last of the records', this.is((i + 1) * MAIN_STEP, () => seen.size))
    }
    const owned = (...members) => this.until('the rebalance', () => {
      for (const m of members) {
        if (m.error) {
          throw m.error
        }
      }
      const parts = members.map(m => m.owned)
      if (show(parts.flat().sort()) !== show(range(0, MAIN_PARTITIONS)) || parts.some(p => p.length === 0)) {
        throw new Failure('owned: ' + show(parts))
      }
      return true
    })
    const a = new Loop(join, group, topic, seen)
    try {
      await owned(a)
      await step(0)
      const b = new Loop(join, group, topic, seen)
      try {
        await owned(a, b)
        await joined()
        await step(1)
      } finally {
        await b.leave()
      }
      await owned(a)
      await step(2)
    } finally {
      await a.leave()
    }
  }

  async commit() {
    const topic = this.topic('main')
    const group = this.topic('commit')
    const ends = await this.offsets(topic, LATEST)
    const sum = m => [...m.values()].reduce((x, y) => x + y, 0)
    const read = async (member, at, until) => {
      // Whoever is made to join again by a coordinator that moved may go back to what is committed, but no further, and skips nothing.
      const start = new Map(at)
      while (!until()) {
        this.check(`at ${show(at)} of ${show(ends)}`)
        const r = await member.next(1000)
        if (!r) {
          continue
        }
        const next = at.get(r.partition)
        if (r.offset < start.get(r.partition) || r.offset > next) {
          throw new Failure(`partition ${r.partition}: offset ${r.offset} was read, not ${next} (or again something from ${start.get(r.partition)} on)`)
        }
        at.set(r.partition, Math.max(next, r.offset + 1))
      }
    }
    const positive = m => new Map([...m].filter(([, o]) => o > 0))
    const at = new Map([...ends.keys()].map(p => [p, 0]))
    await using(await this.d.join(group, topic), async a => {
      await read(a, at, () => sum(at) === (3 * MAIN_STEP) / 2)
      await this.until('the commit', this.is(positive(at), async () => positive(await this.d.committed(group, topic))), () => a.commit(at))
    })
    await using(await this.d.join(group, topic), async b => {
      await read(b, at, () => show(at) === show(ends))
    })
  }

  async seekTime() {
    const topic = this.topic('time')
    const base = baseTime()
    await this.create(topic, 1)
    const records = range(0, 100).map(i => codecRecord('time', i, base))
    await this.send('none', topic, records)
    for (const [after, want] of [[-3_600_000, 0], [50_500, 51], [51_000, 51], [99_000, 99]]) {
      const got = await this.offsets(topic, base + after)
      if (got.get(0) !== want) {
        throw new Failure(`${after} ms after the first record: offset ${got.get(0)}, not ${want}`)
      }
      await using(await this.d.reader(topic, got), async r => {
        let rec = null
        while (!rec) {
          rec = await r.next(1000)
          this.check(`the record at ${after} ms`)
        }
        if (rec.offset !== want) {
          throw new Failure(`seeking to ${after} ms after the first record: offset ${rec.offset}, not ${want}`)
        }
        same(rec, records[want])
      })
    }
    const got = (await this.offsets(topic, base + 3_600_000)).get(0)
    if (got !== -1 && got !== 100) {
      throw new Failure('after the last record: offset ' + got)
    }
  }

  async listOffsets() {
    const topic = this.topic('offsets')
    const base = baseTime()
    await this.create(topic, 3)
    for (const p of range(0, 3)) {
      await this.send('none', topic, range(0, 10 * (p + 1)).map(i => ({ ...codecRecord('offsets', i, base), partition: p })))
    }
    const expect = async first => {
      for (const [at, want] of [[EARLIEST, [0, 0, first]], [LATEST, [10, 20, 30]]]) {
        await this.is(new Map(want.map((o, p) => [p, o])), () => this.offsets(topic, at))()
      }
    }
    await expect(0)
    const begins = this.is(new Map([[0, 0], [1, 0], [2, 7]]), () => this.d.offsets(topic, EARLIEST))
    await this.until('the new beginning', begins, () => this.d.deleteRecords(topic, 2, 7))
    await expect(7)
  }

  /** Looks at everything that it has changed. What the client cannot do goes into the detail. */
  async admin() {
    const topic = this.topic('admin')
    const group = this.topic('commit')
    const cannot = new Set()
    const step = async (what, look, change) => {
      try {
        await this.until(what, look, change)
      } catch (e) {
        if (!(e instanceof Unsupported)) {
          throw e
        }
        cannot.add(e.message)
      }
    }
    const config = () => this.d.topicConfig(topic, 'retention.ms')
    const brokerConfig = async () => {
      const errors = []
      for (const node of [1, 2, 3]) { // one may be down just now
        try {
          const got = await this.d.brokerConfig(node, 'node.id')
          if (got === String(node)) {
            return true
          }
          errors.push(got)
        } catch (e) {
          if (e instanceof Unsupported) {
            throw e
          }
          errors.push(e.message)
        }
      }
      throw new Failure('node.id: ' + show(errors))
    }
    await step("the cluster's nodes", async () => (await this.d.nodes()) >= 2)
    await step('a topic with configurations', async () => (await this.d.describeTopic(topic))[0] === 1,
      () => this.d.createTopic(topic, 1, 3, { 'retention.ms': '3600000' }))
    await step('its retention.ms', this.is('3600000', config))
    await step('the new retention.ms', this.is('7200000', config), () => this.d.setTopicConfig(topic, 'retention.ms', '7200000'))
    await step("a broker's configuration", brokerConfig)
    await step('four partitions', async () => (await this.d.describeTopic(topic))[0] === 4, () => this.d.addPartitions(topic, 4))
    await step('the group in the list', async () => (await this.d.groups()).includes(group))
    await step("the group's description", this.is(['Empty', 0], () => this.d.describeGroup(group)))
    await step('the group gone', async () => !(await this.d.groups()).includes(group), () => this.d.deleteGroup(group))
    await step('the topic gone', async () => !(await this.d.topics()).includes(topic), () => this.d.deleteTopic(topic))
    return [...cannot].join('; ')
  }

  async large() {
    const topic = this.topic('large')
    const base = baseTime()
    await this.create(topic, 1)
    const noise = require('crypto').randomBytes(2_000_000)
    const records = range(0, 3).map(i => ({ ...codecRecord('large', i, base), value: Buffer.concat([Buffer.from(String(i)), noise]).subarray(0, 1_000_000) }))
    await using(await this.d.producer('none', 4 << 20), async p => {
      for (const r of records) {
        await p.send(topic, [r])
      }
      let refusal = null
      await p.send(topic, [{ ...records[0], value: noise }]).catch(e => { refusal = e })
      if (!(refusal instanceof TooLarge)) {
        throw new Failure('2,000,000 bytes, more than max.message.bytes: ' + refusal)
      }
      await p.send(topic, [records[0]])
    })
    await this.compare(topic, [...records, records[0]])
  }

  async records() {
    const topic = this.topic('records')
    const base = baseTime()
    await this.create(topic, RECORD_PARTITIONS)
    const began = Date.now()
    await this.sendNumbered(topic, base)
    const sent = Date.now()
    await this.readNumbered(topic, base)
    return `${this.lines} sent in ${(sent - began) / 1000} s, read in ${(Date.now() - sent) / 1000} s`
  }

  async sendNumbered(topic, base) {
    const k = new Killer(this.lines, () => this.kill(topic, 0))
    const most = Math.min(UNDER_WAY, this.lines / 4)
    let underWay = 0
    let failed = null
    const below = async (n, holds = () => false) => {
      while (underWay > n || holds()) {
        if (failed) {
          throw failed
        }
        k.failed()
        this.check(`${k.count} of ${this.lines} are acknowledged`)
        await sleep(5)
      }
    }
    await using(await this.d.producer('lz4', 1 << 20), async p => {
      const flush = q => {
        const part = q.splice(0)
        underWay += part.length
        p.send(topic, part).catch(e => { failed ??= e }).finally(() => {
          underWay -= part.length
          k.add(part.length)
        })
      }
      // One partition a call: what a call for several leaders does when one of them dies is the client's own affair.
      const queues = range(0, RECORD_PARTITIONS).map(() => [])
      for (let i = 0; i < this.lines; i++) {
        const q = queues[i % RECORD_PARTITIONS]
        q.push(numbered(i, base))
        if (q.length === SEND) {
          await below(most, () => i >= k.gate && !k.dead)
          flush(q)
        }
      }
      queues.filter(q => q.length > 0).forEach(flush)
      await below(0)
    })
    if (failed) {
      throw failed
    }
  }

  async readNumbered(topic, base) {
    const k = new Killer(this.lines, () => this.kill(topic, 1))
    const checkers = range(0, RECORD_PARTITIONS).map(p => new Checker(i => numbered(i * RECORD_PARTITIONS + p, base)))
    await using(await this.d.reader(topic, new Map()), async r => {
      for (let read = 0; read < this.lines;) {
        if (read >= k.gate && !k.dead) {
          k.failed()
          this.check(`${read} of ${this.lines} are read, and no leader was killed`)
          await sleep(20)
          continue
        }
        const got = await r.next(1000)
        this.check(`${read} of ${this.lines} are read`)
        if (got && checkers[got.partition].check(got)) {
          read++
          k.add(1)
        }
      }
    })
    const want = new Map(checkers.map((c, p) => [p, c.next]))
    await this.is(want, () => this.offsets(topic, LATEST))()
  }
}

/** Runs every case and prints its line. */
async function main(driver) {
  const s = new Suite(driver)
  const cases = [['create-topic', () => s.createTopic()]]
  for (const codec of ['none', 'gzip', 'snappy', 'lz4', 'zstd']) {
    cases.push(['produce-' + codec, () => s.produce(codec)])
  }
  cases.push(['group', () => s.group()])
  if (driver.joinConsumer) {
    cases.push(['group-consumer', () => s.groupConsumer()])
  }
  cases.push(['commit', () => s.commit()], ['seek-time', () => s.seekTime()], ['list-offsets', () => s.listOffsets()], ['admin', () => s.admin()],
    ['large', () => s.large()], ['records', () => s.records()])
  for (const [name, run] of cases) {
    const began = Date.now()
    s.end = began + CASE_MS
    let result = 'ok'
    let detail
    try {
      detail = await run()
    } catch (e) {
      result = e instanceof Unsupported ? 'unsupported' : 'failed'
      detail = result === 'failed' ? String(e) : e.message
      log(e.stack)
    }
    log(`${name}: ${result} in ${(Date.now() - began) / 1000} s ${detail ?? ''}`)
    process.stdout.write(JSON.stringify({ client: driver.client, version: driver.version, case: name, result, detail: detail ?? '' }) + '\n')
  }
  await driver.close()
  process.exit(0) // what a client still waits for is of no interest any more
}

module.exports = { main, EARLIEST, LATEST }
