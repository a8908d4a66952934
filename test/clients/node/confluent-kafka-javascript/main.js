// The client matrix' program for @confluentinc/kafka-javascript, librdkafka's binding for Node, in its promised form.
'use strict'

const { KafkaJS, librdkafkaVersion } = require('@confluentinc/kafka-javascript')
const { main, EARLIEST, LATEST } = require('../matrix')
const { Queue, TooLarge, Unsupported, log } = require('../records')

const PREFIX = process.env.PREFIX
const quiet = { info() {}, debug() {}, warn: log, error: log, namespace: () => quiet, setLogLevel() {} }
const kafka = new KafkaJS.Kafka({
  'bootstrap.servers': process.env.BOOTSTRAP, 'client.id': PREFIX, kafkaJS: { logger: quiet, logLevel: KafkaJS.logLevel.WARN },
})
const INVALID = -1001 // librdkafka's OFFSET_INVALID
const MANY = 2 ** 31 - 1 // retries: as in librdkafka, of which the block kafkaJS makes five

class Producer {
  constructor(codec, maxBytes) {
    this.p = kafka.producer({ 'enable.idempotence': true, 'compression.type': codec, 'message.max.bytes': maxBytes, 'linger.ms': 5, retries: MANY })
  }

  async send(topic, records) {
    const messages = records.map(r => ({ partition: r.partition, key: r.key, value: r.value, headers: Object.fromEntries(r.headers), timestamp: String(r.time) }))
    try {
      await this.p.send({ topic, messages })
    } catch (e) {
      throw e.code === KafkaJS.ErrorCodes.ERR_MSG_SIZE_TOO_LARGE ? new TooLarge() : e
    }
  }

  async close() {
    await this.p.flush({ timeout: 60_000 })
    await this.p.disconnect()
  }
}

let readers = 0

class Reader {
  constructor(group, topic, starts, protocol = { 'session.timeout.ms': 10_000 }) {
    this.topic = topic
    this.queue = new Queue(1000)
    this.c = kafka.consumer({
      'group.id': group, 'auto.offset.reset': 'earliest', 'enable.auto.commit': false, 'fetch.message.max.bytes': 4 << 20, ...protocol,
      rebalance_cb: (err, assignment, { assign }) => {
        // Nothing is committed: whoever joins again begins there again.
        if (starts.size > 0 && err.code === KafkaJS.ErrorCodes.ERR__ASSIGN_PARTITIONS) {
          assign(assignment.map(a => ({ ...a, offset: starts.get(a.partition) ?? a.offset })))
        }
      },
    })
  }

  async start() {
    await this.c.connect()
    await this.c.subscribe({ topics: [this.topic] })
    await this.c.run({
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
    return this.c.assignment().map(a => a.partition)
  }

  commit(offsets) {
    return this.c.commitOffsets([...offsets].map(([partition, offset]) => ({ topic: this.topic, partition, offset: String(offset) })))
  }

  async close() {
    this.queue.close()
    await this.c.disconnect()
  }
}

const name = (all, value) => Object.keys(all).find(k => all[k] === value)

class Driver {
  client = 'confluent-kafka-javascript'
  version = `${require('@confluentinc/kafka-javascript/package.json').version} (librdkafka ${librdkafkaVersion})`
  a = kafka.admin()

  async producer(codec, maxBytes) {
    const p = new Producer(codec, maxBytes)
    await p.p.connect()
    return p
  }

  reader(topic, starts) {
    return new Reader(`${PREFIX}.reader-${readers++}`, topic, starts).start()
  }

  join(group, topic) {
    return new Reader(group, topic, new Map()).start()
  }

  joinConsumer(group, topic) {
    return new Reader(group, topic, new Map(), { 'group.protocol': 'consumer' }).start()
  }

  // librdkafka's admin client goes on asking a group's coordinator that has moved: a NOT_COORDINATOR in an answer about a group does
  // not empty its cache. Whatever is asked of a coordinator is therefore asked by a client of its own.
  async asked(call) {
    const a = kafka.admin()
    await a.connect()
    try {
      return await call(a)
    } finally {
      await a.disconnect()
    }
  }

  createTopic(topic, numPartitions, replicationFactor, configs) {
    const configEntries = Object.entries(configs).map(([name, value]) => ({ name, value }))
    return this.a.createTopics({ topics: [{ topic, numPartitions, replicationFactor, configEntries }] })
  }

  async describeTopic(topic) {
    const [t] = await this.a.fetchTopicMetadata({ topics: [topic] })
    return [t.partitions.length, t.partitions[0].replicas.length]
  }

  topics() {
    return this.a.listTopics()
  }

  deleteTopic(topic) {
    return this.a.deleteTopics({ topics: [topic] })
  }

  addPartitions() {
    throw new Unsupported('no addition of partitions')
  }

  nodes() {
    throw new Unsupported('no description of the cluster')
  }

  topicConfig() {
    throw new Unsupported('no configurations but at creation')
  }

  brokerConfig() {
    return this.topicConfig()
  }

  setTopicConfig() {
    return this.topicConfig()
  }

  async listed() {
    const { groups, errors } = await this.a.listGroups()
    if (errors.length > 0) {
      throw errors[0]
    }
    return groups
  }

  async groups() {
    return (await this.listed()).map(g => g.groupId)
  }

  async groupType(group) {
    return name(KafkaJS.ConsumerGroupTypes, (await this.listed()).find(g => g.groupId === group)?.type)
  }

  async describeGroup(group) {
    const { groups } = await this.asked(a => a.describeGroups([group]))
    if (groups[0].error) {
      throw groups[0].error
    }
    return [name({ Empty: KafkaJS.ConsumerGroupStates.EMPTY }, groups[0].state), groups[0].members.length]
  }

  deleteGroup(group) {
    return this.asked(a => a.deleteGroups([group]))
  }

  async committed(groupId, topic) {
    const [{ partitions }] = await this.asked(a => a.fetchOffsets({ groupId, topics: [topic] }))
    return new Map(partitions.map(p => [p.partition, Number(p.offset)]))
  }

  async offsets(topic, at) {
    const named = at === EARLIEST || at === LATEST
    const all = named ? await this.a.fetchTopicOffsets(topic) : await this.a.fetchTopicOffsetsByTimestamp(topic, at)
    const of = named ? (at === EARLIEST ? 'low' : 'high') : 'offset'
    const got = new Map(all.map(p => [p.partition, Number(p[of])]))
    if ([...got.values()].includes(INVALID)) { // what came for a partition whose leader just moved was an error, which it does not pass on
      throw new Error(`no answer for all partitions of ${topic}`)
    }
    return got
  }

  deleteRecords(topic, partition, before) {
    return this.a.deleteTopicRecords({ topic, partitions: [{ partition, offset: String(before) }] })
  }

  close() {
    return this.a.disconnect()
  }
}

async function start() {
  const d = new Driver()
  await d.a.connect()
  await main(d)
}

start().catch(e => {
  log(e.stack)
  process.exit(1)
})
