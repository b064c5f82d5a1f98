//! Every metric there is: its name, type, labels and meaning. The guide `metrics` has the same table.

/// Metrics of one name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
}

macro_rules! families {
    ($($constant:ident = $kind:literal $name:literal $labels:tt $help:literal;)*) => {
        $(pub(super) const $constant: Family = Family {
            name: $name, kind: $kind, labels: &$labels, help: $help,
        };)*
        /// All of them, in the order of the page.
        pub(super) const FAMILIES: &[Family] = &[$($constant),*];
    };
}

families! {
    // What a queue holds.
    REQUESTS = "gauge" "batchyard_requests" ["queue", "state"] "Requests held, by state: delayed, ready, in_flight, dead.";
    READY_BYTES = "gauge" "batchyard_ready_bytes" ["queue"] "Payload bytes of ready requests.";
    HELD_BYTES = "gauge" "batchyard_held_bytes" ["queue"] "Payload bytes of delayed, ready and in-flight requests.";
    OLDEST_AGE = "gauge" "batchyard_oldest_ready_age_seconds" ["queue"] "Age of the oldest ready request; 0 if there is none.";
    BATCHES = "gauge" "batchyard_batches" ["queue", "state"] "Open batches: held or waiting for their time (open), and offered again now (offered).";
    FILL = "gauge" "batchyard_next_batch_fill_ratio" ["queue"] "How full the next batch is: ready requests or bytes against their threshold, whichever is nearer; at most 1.";
    QUEUE_READABLE = "gauge" "batchyard_queue_readable" ["queue"] "1 if the queue could be read for this scrape, else 0; of _other: how many could.";
    PAUSED = "gauge" "batchyard_queue_paused" ["queue"] "1 while the queue is paused, else 0; of _other: how many are.";
    SERVED = "gauge" "batchyard_queue_served" ["queue"] "1 while the dispatcher serves the queue, 0 once it was given up; of _other: how many are served.";
    BREAKER = "gauge" "batchyard_breaker_open" ["queue"] "1 while the handler's remote is taken to be down, the probe included, else 0; of _other: how many are.";
    SLOTS_USED = "gauge" "batchyard_slots_used" ["queue"] "Batches in handlers.";
    // What it is measured against.
    SLOTS = "gauge" "batchyard_slots" ["queue"] "The most batches in handlers at the same time (max_in_flight).";
    QUEUE_THRESHOLD = "gauge" "batchyard_queue_threshold_requests" ["queue"] "How many ready requests make a batch leave.";
    TIME_THRESHOLD = "gauge" "batchyard_time_threshold_seconds" ["queue"] "At which age of the oldest a batch leaves.";
    MAX_REQUESTS = "gauge" "batchyard_max_batch_requests" ["queue"] "The most requests of a batch.";
    MAX_BYTES = "gauge" "batchyard_max_batch_bytes" ["queue"] "The most payload bytes of a batch, which also make it leave; +Inf without a limit.";
    // What became of requests, counted by the queue itself.
    PUSHED = "counter" "batchyard_requests_pushed_total" ["queue"] "Requests ever pushed, duplicates left out.";
    DONE = "counter" "batchyard_requests_done_total" ["queue"] "Requests ever done.";
    EXPIRED = "counter" "batchyard_requests_expired_total" ["queue"] "Requests whose time to live passed before they were claimed.";
    CANCELLED = "counter" "batchyard_requests_cancelled_total" ["queue"] "Requests ever cancelled.";
    PURGED = "counter" "batchyard_requests_purged_total" ["queue"] "Dead letters ever purged.";
    // What this process did.
    REDRIVEN = "counter" "batchyard_requests_redriven_total" ["queue"] "Dead letters made ready again through this process.";
    CLAIMED = "counter" "batchyard_batches_claimed_total" ["queue", "trigger"] "Batches claimed, by why: count, bytes, age, flush; offered: one that was handed out before, or a half of one.";
    ENDED = "counter" "batchyard_attempts_total" ["queue", "end"] "Attempts on batches, by how they ended: finished, deferred, released, split, rejected, lease_lost.";
    OUTCOMES = "counter" "batchyard_outcomes_total" ["queue", "outcome"] "Outcomes given to members of batches: done, retried, or dead by reason: rejected, exhausted, undecodable, damaged, too_large.";
    HANDLER_ERRORS = "counter" "batchyard_handler_errors_total" ["queue", "kind"] "Batches that a handler failed with, by kind: outage, transient, permanent.";
    HUNG = "counter" "batchyard_handlers_hung_total" ["queue"] "Handlers that did not stop when they were told to.";
    BREAKER_OPENED = "counter" "batchyard_breaker_opened_total" ["queue"] "How often the breaker opened, or stayed open after a probe.";
    QUEUE_FAILURES = "counter" "batchyard_queue_failures_total" ["queue"] "Calls of the dispatcher to the queue that failed.";
    BATCH_REQUESTS = "histogram" "batchyard_batch_requests" ["queue"] "Members of new batches.";
    BATCH_BYTES = "histogram" "batchyard_batch_bytes" ["queue"] "Payload bytes of new batches.";
    BATCH_WAIT = "histogram" "batchyard_batch_wait_seconds" ["queue"] "Age of the oldest request of a new batch when it was claimed.";
    HANDLER_SECONDS = "histogram" "batchyard_handler_duration_seconds" ["queue"] "How long handlers took with a batch.";
    PUSH_SECONDS = "histogram" "batchyard_push_duration_seconds" [] "How long pushes took that were answered by this process.";
    STORAGE_ERRORS = "counter" "batchyard_storage_errors_total" ["kind"] "Calls to queues that failed through no fault of their caller, by kind: corrupt, internal, poisoned, queue_full, unavailable.";
    // The dispatcher, the store and the process.
    DISPATCHER_UP = "gauge" "batchyard_dispatcher_up" [] "1 if the dispatcher's loop answered for this scrape, else 0.";
    DISPATCHER_PAUSED = "gauge" "batchyard_dispatcher_paused" [] "1 while the dispatcher itself is paused, else 0.";
    TOTAL_SLOTS_USED = "gauge" "batchyard_dispatcher_slots_used" [] "Batches in handlers, over all queues.";
    TOTAL_SLOTS = "gauge" "batchyard_dispatcher_slots" [] "The most batches in handlers over all queues; +Inf without a limit.";
    POISONED = "gauge" "batchyard_store_poisoned" [] "1 once a write or a sync has failed, until the store is opened again, else 0.";
    DISK_BYTES = "gauge" "batchyard_store_disk_bytes" [] "What the store takes of the disk.";
    OPEN_SECONDS = "gauge" "batchyard_store_open_seconds" [] "How long opening the store took, its recovery included.";
    BUILD = "gauge" "batchyard_build_info" ["version"] "1, with the version of Batchyard.";
    PROCESS_CPU = "counter" "process_cpu_seconds_total" [] "Processor time that the process used.";
    PROCESS_RESIDENT = "gauge" "process_resident_memory_bytes" [] "Resident memory of the process.";
    PROCESS_VIRTUAL = "gauge" "process_virtual_memory_bytes" [] "Virtual memory of the process.";
    PROCESS_FDS = "gauge" "process_open_fds" [] "Open file descriptors.";
    PROCESS_MAX_FDS = "gauge" "process_max_fds" [] "The most file descriptors that may be open.";
    PROCESS_START = "gauge" "process_start_time_seconds" [] "When the process was started, since the Unix epoch.";
}
