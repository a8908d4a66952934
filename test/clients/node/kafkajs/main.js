// The client matrix' program for kafkajs. It brings gzip; the other codecs are packages of their own, as its manual says.
'use strict'

const { Kafka, CompressionTypes, CompressionCodecs, ConfigResourceTypes, logLevel } = require('kafkajs')
const zstd = require('@bokuweb/zstd-wasm')
const LZ4 = require('kafkajs-lz4')
const { main, EARLIEST, LATEST } = require('../matrix')
const { Queue, TooLarge, log, sleep } = require('../records')

CompressionCodecs[CompressionTypes.Snappy] = require('kafkajs-snappy')
CompressionCodecs[CompressionTypes.LZ4] = new LZ4().codec
CompressionCodecs[CompressionTypes.ZSTD] = () => ({
  compress: async encoder => Buffer.from(zstd.compress(encoder.buffer, 3)),
  decompress: async buffer => Buffer.from(zstd.decompress(buffer)),
})
const CODECS = { none: CompressionTypes.None, gzip: CompressionTypes.GZIP, snappy: CompressionTypes.Snappy, lz4: CompressionTypes.LZ4, zstd: CompressionTypes.ZSTD }

const PREFIX = process.env.PREFIX
// A node that is down is given up soon, and what the others know is asked for again.
const kafka = new Kafka({
  brokers: process.env.BOOTSTRAP.split(','), clientId: PREFIX, logLevel: logLevel.ERROR, retry: { initialRetryTime: 100, maxRetryTime: 2000, retries: 30 },
  logCreator: () => entry => log(entry.label, entry.log.message, entry.log.error ?? ''),
})

class Producer {
  constructor(codec) {
    this.p = kafka.producer({ idempotent: true, maxInFlightRequests: 1 })
    this.compression = CODECS[codec]
    this.turn = Promise.resolve()
  }

  // Its idempotence wants one call after the other: a sequence number that is refused is taken back only then.
  send(topic, records) {
    const messages = records.map(r => ({ partition: r.partition, key: r.key, value: r.value, headers: Object.fromEntries(r.headers), timestamp: String(r.time) }))
    const sent = this.turn.then(() => this.p.send({ topic, messages, acks: -1, compression: this.compression })).catch(e => {
      throw e.type === 'MESSAGE_TOO_LARGE' ? new TooLarge() : e
    })
    this.turn = sent.catch(() => {})
    return sent
  }

  close() {
    return this.p.disconnect()
  }
}

let readers = 0

class Reader {
  constructor(group, topic, starts) {
    this.topic = topic
    this.parts = []
    this.queue = new Queue(1000)
    this.c = kafka.consumer({
      groupId: group, sessionTimeout: 10_000, heartbeatInterval: 1000, metadataMaxAge: 5000, maxBytesPerPartition: 4 << 20, maxWaitTimeInMs: 500,
    })
    this.c.on(this.c.events.GROUP_JOIN, ({ payload }) => {
      this.parts = payload.memberAssignment[topic] ?? []
      // Nothing is committed: whoever joins again seeks again.
      for (const p of this.parts.filter(p => starts.has(p))) {
        this.c.seek({ topic, partition: p, offset: String(starts.get(p)) })
      }
    })
    this.c.on(this.c.events.REBALANCING, () => { this.parts = [] })
    this.c.on(this.c.events.CRASH, ({ payload }) => log('a consumer crashed:', payload.error.message, 'restarts:', payload.restart))
  }

  async start() {
    await this.c.connect()
    await this.c.subscribe({ topics: [this.topic], fromBeginning: true })
    await this.c.run({
      autoCommit: false,
      eachMessage: async ({ partition, message: m }) => {
        await this.queue.push({
          partition, offset: Number(m.offset), key: m.key, value: m.value, headers: Object.entries(m.headers ?? {}), time: Number(m.timestamp),
        })
      },
    })
    return this
  }

  next(ms) {
    return this.queue.next(ms)
  }

  owned() {
    return this.parts
  }

  commit(offsets) {
    return this.c.commitOffsets([...offsets].map(([partition, offset]) => ({ topic: this.topic, partition, offset: String(offset) })))
  }

  // Told to end while it starts its fetchers anew, a broker having gone, kafkajs 2.2.4 runs in a circle for ever that lets nothing else
  // run (its Fetcher asks a Runner that has ended, which answers at once). So it is told when a fetch has just been started.
  async close() {
    const fetching = new Promise(resolve => { this.c.on(this.c.events.FETCH_START, resolve) })
    this.queue.close()
    await Promise.race([fetching, sleep(5000)])
    await this.c.disconnect()
  }
}

class Driver {
  client = 'kafkajs'
  version = require('kafkajs/package.json').version
  a = kafka.admin()

  async producer(codec) {
    const p = new Producer(codec)
    await p.p.connect()
    return p
  }

  reader(topic, starts) {
    return new Reader(`${PREFIX}.reader-${readers++}`, topic, starts).start()
  }

  join(group, topic) {
    return new Reader(group, topic, new Map()).start()
  }

  createTopic(topic, numPartitions, replicationFactor, configs) {
    const configEntries = Object.entries(configs).map(([name, value]) => ({ name, value }))
    return this.a.createTopics({ topics: [{ topic, numPartitions, replicationFactor, configEntries }] })
  }

  async describeTopic(topic) {
    const { topics } = await this.a.fetchTopicMetadata({ topics: [topic] })
    return [topics[0].partitions.length, topics[0].partitions[0].replicas.length]
  }

  topics() {
    return this.a.listTopics()
  }

  deleteTopic(topic) {
    return this.a.deleteTopics({ topics: [topic] })
  }

  addPartitions(topic, count) {
    return this.a.createPartitions({ topicPartitions: [{ topic, count }] })
  }

  async nodes() {
    return (await this.a.describeCluster()).brokers.length
  }

  async describe(type, name, config) {
    const { resources } = await this.a.describeConfigs({ includeSynonyms: false, resources: [{ type, name, configNames: [config] }] })
    return resources[0].configEntries[0].configValue
  }

  topicConfig(topic, name) {
    return this.describe(ConfigResourceTypes.TOPIC, topic, name)
  }

  brokerConfig(node, name) {
    return this.describe(ConfigResourceTypes.BROKER, String(node), name)
  }

  setTopicConfig(topic, name, value) {
    return this.a.alterConfigs({ validateOnly: false, resources: [{ type: ConfigResourceTypes.TOPIC, name: topic, configEntries: [{ name, value }] }] })
  }

  async groups() {
    return (await this.a.listGroups()).groups.map(g => g.groupId)
  }

  async describeGroup(group) {
    const { groups } = await this.a.describeGroups([group])
    return [groups[0].state, groups[0].members.length]
  }

  deleteGroup(group) {
    return this.a.deleteGroups([group])
  }

  async committed(groupId, topic) {
    const [{ partitions }] = await this.a.fetchOffsets({ groupId, topics: [topic] })
    return new Map(partitions.map(p => [p.partition, Number(p.offset)]))
  }

  async offsets(topic, at) {
    if (at === EARLIEST || at === LATEST) {
      const all = await this.a.fetchTopicOffsets(topic)
      return new Map(all.map(p => [p.partition, Number(at === EARLIEST ? p.low : p.high)]))
    }
    const all = await this.a.fetchTopicOffsetsByTimestamp(topic, at)
    return new Map(all.map(p => [p.partition, Number(p.offset)]))
  }

  deleteRecords(topic, partition, before) {
    return this.a.deleteTopicRecords({ topic, partitions: [{ partition, offset: String(before) }] })
  }

  close() {
    return this.a.disconnect()
  }
}

async function start() {
  await zstd.init()
  const d = new Driver()
  await d.a.connect()
  await main(d)
}

start().catch(e => {
  log(e.stack)
  process.exit(1)
})
