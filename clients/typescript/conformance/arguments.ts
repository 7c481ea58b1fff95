/** Which arguments words have: one that a case misspells must not go unseen. */
import { isMap, type Plain } from "./values.js";

const MESSAGE = "message message_text headers headers_text delay visible_at group deduplication_id";
const HELD = "queue receipts messages";
const PAGES = "prefix page_size";
const ARCHIVED = "queue msg_ids archived_after archived_before";

const ARGUMENTS = {
  create_queue: "queue kind layout partitioning policy fail_if_exists",
  get_queue: "queue",
  set_queue_layout: "queue layout",
  update_queue: "queue policy clear",
  list_queues: `${PAGES} dead_letter_queue`,
  drop_queue: "queue",
  purge_queue: "queue",
  get_queue_metrics: "queue include_archive",
  list_queue_metrics: `${PAGES} include_archive`,
  send: `queue ${MESSAGE} idempotent`,
  send_batch: "queue messages idempotent",
  read: "queue max_messages visibility_timeout wait conditional ordering",
  pop: "queue max_messages",
  delete: `${HELD} msg_ids`,
  archive: `${HELD} msg_ids`,
  release: `${HELD} delay`,
  dead_letter: `${HELD} reason`,
  set_visibility_timeout: `${HELD} msg_ids visibility_timeout visible_at`,
  transact: "operations deduplication_id",
  validate_name: "queue routing_key pattern",
  get_server_info: "",
  bind_topic: "queue pattern",
  unbind_topic: "queue pattern",
  list_topic_bindings: "queue page_size",
  test_routing: "routing_key",
  send_topic: `routing_key ${MESSAGE} require_match`,
  send_topic_batch: "routing_key messages require_match",
  list_messages: "queue state msg_ids page_size",
  list_archived_messages: `${ARCHIVED} page_size`,
  delete_archived_messages: `${ARCHIVED} max_messages`,
  replay: `${ARCHIVED} max_messages target_queue`,
  redrive: "dead_letter_queue msg_ids target_queue max_messages",
  create_fifo_index: "queue all_queues",
  convert_archive_partitioned: "queue partitioning",
  enable_notifications: "queue throttle_interval",
  update_notifications: "queue throttle_interval",
  disable_notifications: "queue",
  list_notifications: PAGES,
  list_clients: `queue ${PAGES}`,
  install_pgmq: "",
  connect: "name metadata",
  settle: "message action delay reason visibility_timeout",
  consume: "queue max_in_flight visibility_timeout ordering conditional auto_extend",
  take: "consumer count within",
  stop: "consumer",
  handle: "queue count deliveries fail_first retry_delay concurrency action visibility_timeout ordering",
  watch: "queues",
  events: "watcher count within",
  producer: "queue idempotent",
  produce: "queue idempotent producer messages",
  close: "producer",
  hold: "queue msg_ids",
  restart_server: "kill",
  wait_for_server: "",
  wait: "seconds",
};

/** Words whose messages are to be sent. */
const SENDING = new Set(["send_batch", "send_topic_batch", "produce"]);

/** Fails where a word is given what it does not take. */
export function checkArguments(word: string, given: Plain): void {
  const known = (ARGUMENTS as Record<string, string | undefined>)[word];
  if (known === undefined) throw new Error(`there is no word ${word}`);
  checkKeys(word, given, known);
  if (SENDING.has(word)) {
    for (const message of listOf(given.messages)) checkKeys(`a message of ${word}`, message, MESSAGE);
  }
  for (const operation of word === "transact" ? listOf(given.operations) : []) {
    for (const [inner, argument] of Object.entries(operation)) checkArguments(inner, argument as Plain);
  }
}

function listOf(value: unknown): Plain[] {
  return Array.isArray(value) ? value.filter(isMap) : [];
}

function checkKeys(of: string, given: Plain, known: string): void {
  const key = Object.keys(given).find((name) => !known.split(" ").includes(name));
  if (key !== undefined) throw new Error(`${of} takes no ${key}`);
}
