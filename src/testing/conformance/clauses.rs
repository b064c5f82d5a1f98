//! The list of all clauses: the one place to add a name. A function that is not listed is dead code,
//! and a name without a function does not compile.

/// Opens a test module in which every clause of the contract of [`Queue`](crate::Queue) is a test.
///
/// ```
/// # use std::sync::Arc;
/// # use batchyard::{MemoryQueue, Queue, QueueOptions, testing::Harness};
/// struct Memory;
///
/// #[async_trait::async_trait]
/// impl Harness for Memory {
///     async fn open(&self, options: QueueOptions) -> Arc<dyn Queue> {
///         Arc::new(MemoryQueue::new(options))
///     }
/// }
///
/// batchyard::conformance!(memory, Memory);
/// # fn main() {}
/// ```
/// The expression makes the [`Harness`](crate::testing::Harness) and is evaluated for each test, in a
/// tokio runtime of that test.
#[macro_export]
macro_rules! conformance {
    ($name:ident, $harness:expr) => {
        #[cfg(test)]
        fn $name() -> impl $crate::testing::Harness {
            $harness
        }

        #[cfg(test)]
        mod $name {
            $crate::__clauses!(__clause_tests[$name]);
        }
    };
}

/// A test for each clause.
#[doc(hidden)]
#[macro_export]
macro_rules! __clause_tests {
    ([$name:ident] $($topic:ident { $($clause:ident $(: $($need:ident)+)?,)* })*) => {
        $($(
            #[test]
            fn $clause() {
                $crate::testing::conformance::check(stringify!($clause), super::$name);
            }
        )*)*

        #[test]
        fn lists_what_it_skips() {
            $crate::testing::conformance::print_skipped(super::$name);
        }
    };
}

/// The same clauses as values.
#[doc(hidden)]
#[macro_export]
macro_rules! __clause_table {
    ([] $($topic:ident { $($clause:ident $(: $($need:ident)+)?,)* })*) => {
        &[$($(Clause {
            name: stringify!($clause),
            topic: stringify!($topic),
            needs: &[$($(Need::$need),+)?],
            run: |bench| Box::pin($topic::$clause(bench)),
        },)*)*]
    };
}

/// The list: topics, their clauses, and what a clause needs beyond the five verbs.
#[doc(hidden)]
#[macro_export]
macro_rules! __clauses {
    ($then:ident $arguments:tt) => {
        $crate::$then! {
            $arguments
            push {
                push_answers_one_id_for_each_request,
                push_answers_in_the_order_of_its_requests,
                ids_of_one_push_are_consecutive,
                ids_of_later_pushes_are_larger_even_if_now_went_back,
                an_id_is_the_time_of_its_push_or_one_more_than_the_last,
                an_empty_push_adds_nothing,
                an_answered_push_is_visible_to_the_next_call,
                a_push_with_one_invalid_request_adds_none,
                an_empty_payload_is_legal,
                a_payload_comes_back_byte_for_byte,
                a_payload_larger_than_a_page_comes_back_whole,
                the_largest_payload_is_taken_and_one_byte_more_is_invalid,
                attributes_come_back_as_they_were_pushed,
                as_many_attributes_as_allowed_are_taken_and_more_are_invalid,
                equal_requests_without_a_key_are_separate,
                a_push_of_many_requests_is_one_push,
                queues_share_nothing,
            }
            keys {
                a_known_key_adds_nothing_and_answers_the_first_id,
                a_known_key_with_another_payload_is_invalid,
                a_key_twice_in_one_push_is_one_request,
                a_key_twice_in_one_push_is_one_request_even_without_a_window,
                a_key_twice_in_one_push_with_two_payloads_is_invalid,
                new_requests_among_duplicates_have_consecutive_ids,
                a_key_is_known_whatever_became_of_its_request,
                a_key_is_known_after_retention_and_cancelling: Administration,
                a_key_is_forgotten_when_its_window_has_passed,
                a_duplicate_does_not_lengthen_the_window,
                a_duplicate_changes_nothing_of_the_first,
                keys_are_told_apart_to_the_last_byte,
                duplicates_need_no_room: Bounds,
                a_push_refused_for_room_leaves_no_key_behind: Bounds,
            }
            claim {
                a_small_batch_is_formed_whole,
                claim_forms_no_batch_before_the_queue_is_due,
                claim_of_an_empty_queue_is_none,
                claim_takes_requests_in_order,
                position_decides_the_order_when_now_went_back,
                claim_takes_no_more_than_max_requests,
                claim_takes_no_more_than_max_bytes,
                both_limits_of_a_claim_hold_together,
                a_request_of_exactly_max_bytes_is_taken,
                a_request_over_max_bytes_is_dead_and_the_claim_goes_on,
                a_claim_of_only_too_large_requests_answers_none,
                a_lease_tells_what_was_claimed,
                requests_are_in_flight_before_the_claim_answers,
                no_request_is_in_two_batches,
                batch_ids_sort_by_when_they_were_formed,
                every_claim_has_a_larger_fence,
                a_claim_that_may_not_form_takes_no_ready_request,
                what_is_promoted_by_a_claim_counts_for_whether_the_queue_is_due,
                a_batch_offered_again_is_taken_whether_or_not_the_queue_is_due,
                a_context_of_64_kib_is_taken_and_more_is_invalid,
                a_lease_may_last_for_ever,
                an_orphan_is_offered_when_its_lease_has_run_out_and_not_before,
                an_orphan_keeps_its_id_members_and_order,
                an_orphan_ignores_the_limits_and_context_of_its_next_claim,
                batches_offered_again_come_before_new_ones_oldest_first,
                after_a_claim_that_answers_none_nothing_invites_another,
            }
            read {
                read_tells_everything_of_a_member,
                read_answers_in_pages_of_max_requests,
                read_answers_in_pages_of_max_bytes,
                a_page_has_at_least_one_member_until_the_end,
                a_page_may_be_read_again,
                read_shows_each_outcome_as_it_was_recorded,
                read_with_a_fence_that_is_not_the_batch_s_is_lease_lost,
                read_after_a_takeover_is_lease_lost,
            }
            update {
                the_first_outcome_of_a_member_wins,
                done_is_visible_at_once,
                retry_and_reject_take_effect_when_the_batch_ends,
                recorded_outcomes_survive_a_takeover,
                a_checkpoint_comes_back_with_the_next_claim,
                a_checkpoint_may_come_with_release_and_defer,
                an_empty_checkpoint_is_a_checkpoint,
                a_checkpoint_of_64_kib_is_taken_and_more_is_invalid,
                an_update_naming_a_request_that_is_not_a_member_changes_nothing,
                outcomes_checkpoint_and_what_is_next_land_together,
                an_update_may_record_a_thousand_outcomes,
                update_with_an_old_fence_is_lease_lost,
                a_lease_that_ran_out_is_good_until_another_claim,
                after_each_end_of_a_hold_the_lease_is_lost,
                a_lease_of_no_batch_is_lease_lost,
                an_answered_update_is_visible_to_the_next_call,
            }
            hold {
                a_held_batch_is_offered_to_nobody,
                a_hold_may_be_shortened,
                a_holder_that_was_late_may_hold_again,
                a_released_batch_is_offered_at_once,
                a_release_burns_no_attempt,
                a_deferred_batch_is_offered_at_its_time_and_not_before,
                a_deferred_attempt_counts,
                a_defer_to_the_past_is_offered_at_once,
                a_batch_may_be_deferred_for_ever,
            }
            ending {
                finish_settles_the_rest_as_done,
                finish_settles_the_rest_as_rejected,
                a_retried_request_is_ready_at_the_tail_and_keeps_what_it_was,
                retried_requests_stay_in_order_among_themselves,
                a_retry_in_the_future_is_delayed_until_then,
                an_outcome_may_delay_its_retry_further_but_not_less,
                attempts_count_over_batches_and_redeliveries,
                a_request_whose_attempts_are_used_up_is_dead,
                a_split_makes_two_batches_of_equal_size_in_order,
                a_split_drops_the_checkpoint,
                a_split_settles_members_that_have_an_outcome,
                attempts_count_on_across_a_split,
                a_split_of_fewer_than_two_without_an_outcome_changes_nothing,
                splitting_isolates_one_poisonous_request,
                a_half_is_a_batch_like_any_other,
                a_batch_whose_members_are_all_settled_is_still_open_until_it_ends,
                a_dead_letter_tells_its_reason_error_and_attempts: Administration,
                an_exhausted_request_keeps_its_last_error: Administration,
                a_request_too_large_for_a_batch_tells_so: Administration,
            }
            schedule {
                a_request_before_its_time_is_delayed,
                a_delayed_request_is_ready_at_its_time,
                a_time_that_has_come_is_no_delay,
                a_request_may_never_be_due,
                due_requests_are_promoted_in_order_of_their_times,
                requests_due_at_the_same_time_keep_their_order,
                times_are_told_apart_to_the_nanosecond,
                promotion_happens_before_a_push_adds,
                promotion_happens_before_an_update_settles,
                promotion_happens_before_a_claim_forms,
                a_now_that_went_back_undoes_nothing,
                a_claim_at_an_earlier_now_is_legal,
                a_request_expires_when_its_ttl_has_passed_and_not_before,
                a_claim_takes_no_expired_request,
                a_request_whose_ttl_has_no_end_never_expires,
                a_delayed_request_expires_too,
                expiry_comes_before_promotion,
                a_promoted_request_still_expires,
                a_request_in_flight_does_not_expire,
                a_request_that_would_come_back_after_its_ttl_expires,
                a_ttl_does_not_keep_a_rejected_request_from_the_dead,
                a_retried_request_expires_while_it_waits,
                a_retried_request_expires_even_if_now_went_back_before,
            }
            stats {
                stats_of_an_empty_queue_are_zero,
                every_request_is_counted_in_exactly_one_state,
                looking_twice_shows_the_same,
                next_due_is_the_first_of_the_delayed,
                next_offer_is_the_first_of_those_not_offered_yet,
                duplicates_are_not_counted,
                the_age_is_that_of_the_first_ready_request,
                a_batch_in_flight_has_no_part_in_the_age,
                the_age_of_a_retried_request_counts_from_its_return,
                the_age_of_a_promoted_request_counts_from_its_due_time,
                an_expired_request_has_no_part_in_the_age,
                a_ready_time_in_the_future_counts_from_when_it_was_first_seen,
                the_age_is_never_past_the_now_that_was_asked_with,
                every_reading_adds_up_along_the_way,
            }
            limits {
                a_push_over_max_requests_is_queue_full_and_adds_none: Bounds,
                a_push_over_max_bytes_is_queue_full_and_adds_none: Bounds,
                delayed_and_in_flight_requests_take_room: Bounds,
                settled_requests_take_no_room: Bounds,
                a_full_queue_still_takes_back_what_is_retried: Bounds,
                an_empty_push_fits_into_a_full_queue: Bounds,
                a_blocked_push_goes_on_when_there_is_room: Bounds,
                a_blocked_push_is_queue_full_when_its_time_is_up: Bounds,
                a_push_that_alone_exceeds_the_bounds_does_not_wait: Bounds,
                a_dropped_waiting_push_adds_nothing: Bounds,
            }
            admin {
                status_of_an_unknown_request_is_none: Administration,
                status_tells_of_a_ready_request: Administration,
                status_tells_when_a_delayed_request_is_due: Administration,
                status_tells_the_batch_of_a_request_in_flight: Administration,
                status_tells_why_a_request_came_back: Administration,
                expired_and_cancelled_requests_are_only_counted: Administration,
                list_tells_each_state_in_order_of_ids: Administration,
                list_entries_are_those_of_status: Administration,
                list_answers_in_pages: Administration,
                list_reads_payloads_when_asked: Administration,
                a_list_with_payloads_ends_a_page_after_about_4_mib: Administration,
                cancelling_takes_ready_and_delayed_requests_at_once: Administration,
                cancelling_passes_over_what_it_does_not_apply_to: Administration,
                a_request_cancelled_in_flight_does_not_come_back: Administration,
                a_mark_to_cancel_does_not_change_done_or_dead: Administration,
                a_done_member_of_an_open_batch_can_not_be_cancelled: Administration,
                a_mark_to_cancel_survives_a_split: Administration,
                a_cancelled_request_makes_room: Administration Bounds,
                redrive_makes_dead_letters_ready_at_the_tail: Administration,
                a_redriven_request_has_no_ttl_any_more: Administration,
                redrive_passes_over_what_is_not_dead: Administration,
                redrive_over_the_bounds_is_queue_full_and_moves_none: Administration Bounds,
                a_request_too_large_may_be_redriven_to_a_larger_batch: Administration,
                a_delayed_request_too_large_is_whole_when_redriven: Administration,
                purge_forgets_dead_letters: Administration,
                every_reason_to_die_comes_back_as_it_was_given: Administration,
            }
            batches {
                a_batch_tells_what_its_lease_tells: Batches,
                a_batch_tells_who_has_it_and_until_when: Batches,
                a_batch_tells_how_many_of_its_members_have_which_outcome: Batches,
                a_batch_shows_its_checkpoint_when_asked_for_by_its_id: Batches,
                halves_tell_their_parent_and_the_attempts_before: Batches,
                batches_are_listed_in_pages_in_order_of_their_ids: Batches,
                a_batch_that_has_ended_or_never_was_is_not_known: Batches,
                a_released_batch_is_offered_at_once_and_keeps_what_it_is: Batches,
                the_holder_of_a_released_batch_has_lost_its_lease: Batches,
                releasing_a_deferred_batch_ends_its_wait_and_its_attempt_counts: Batches,
                a_released_half_keeps_the_attempts_before: Batches,
                release_passes_over_what_is_offered_already: Batches,
                releasing_wakes: Batches WakeUps,
                a_release_brings_what_time_brought: Batches,
                open_batches_and_a_release_survive: Batches Restart,
                what_one_handle_holds_another_releases: Batches Shared,
                outcomes_of_many_members_are_counted: Batches,
            }
            results {
                a_done_request_can_be_looked_up_with_its_result: Administration Results,
                a_request_done_by_the_rest_has_no_result: Administration Results,
                an_empty_result_is_a_result: Administration Results,
                a_large_result_comes_back_whole: Administration Results,
                done_requests_are_listed_without_payloads: Administration Results,
                a_done_request_is_forgotten_after_its_retention: Administration Results,
                retention_counts_from_the_end_of_the_batch: Administration Results,
                results_may_be_kept_for_ever: Administration Results,
                dead_letters_are_kept_beyond_retention: Administration Results,
                results_come_in_the_order_in_which_they_were_settled: Administration Results,
                one_update_settles_done_members_before_dead_ones: Administration Results,
                a_cursor_goes_on_where_it_was: Administration Results,
                results_are_the_entries_of_status: Administration Results,
                results_leave_out_what_was_redriven_or_purged: Administration Results,
                a_page_of_results_is_empty_only_at_the_end: Administration Results,
                a_page_of_results_is_empty_where_the_rest_is_gone: Administration Results,
                a_request_too_large_is_among_the_results: Administration Results,
                a_retried_request_is_no_result_until_it_is_settled: Administration Results,
                a_half_that_is_done_is_found_behind_a_batch_of_redriven_ones: Administration Results,
                waiting_for_a_request_answers_when_it_is_settled: Administration Results,
                waiting_for_what_will_never_be_settled_is_not_found: Administration Results,
            }
            bookmarks {
                a_bookmark_is_stored_with_its_push: Bookmarks,
                each_source_has_a_bookmark_of_its_own: Bookmarks,
                a_bookmark_without_requests_is_stored: Bookmarks,
                a_bookmark_with_only_duplicates_is_stored: Bookmarks,
                a_refused_push_stores_no_bookmark: Bookmarks,
                a_push_without_room_stores_no_bookmark: Bookmarks Bounds,
                a_bookmark_over_its_limits_is_invalid_and_adds_nothing: Bookmarks,
                a_pause_is_shown_until_it_is_resumed: Bookmarks,
                a_flush_is_shown: Bookmarks,
            }
            wakeups {
                a_push_wakes: WakeUps,
                giving_a_batch_back_wakes: WakeUps,
                holding_a_batch_for_less_time_wakes: WakeUps,
                an_outcome_wakes_who_waits_for_it: WakeUps,
                cancelling_and_redriving_wake: WakeUps Administration,
                every_receiver_sees_the_change: WakeUps,
                pausing_resuming_and_flushing_wake: WakeUps Bookmarks,
            }
            capabilities {
                administration_is_there_if_it_is_declared_and_only_then,
                bookmarks_that_are_not_declared_are_invalid,
                batches_that_are_not_declared_are_invalid: Administration,
                what_is_declared_fits_together,
                what_is_declared_does_not_change,
                the_queue_s_clock_does_not_go_back,
            }
            restart {
                ready_requests_survive_in_order: Restart,
                every_reading_is_the_same_after_a_restart: Restart,
                an_empty_queue_survives_as_an_empty_queue: Restart,
                ids_go_on_growing_after_a_restart: Restart,
                a_batch_in_flight_is_resumed_under_its_id: Restart,
                a_lease_is_good_after_a_restart_too: Restart,
                released_deferred_and_split_batches_survive: Restart,
                attempts_and_retries_survive: Restart,
                what_time_brought_while_it_was_closed_is_applied: Restart,
                the_age_of_the_oldest_goes_on_across_a_restart: Restart,
                keys_survive: Restart,
                bookmarks_survive: Restart Bookmarks,
                a_pause_and_a_flush_survive: Restart Bookmarks,
                bounds_count_what_was_there_before: Restart Bounds,
                dead_letters_and_marks_to_cancel_survive: Restart Administration,
                results_and_their_order_survive: Restart Administration Results,
                results_are_kept_as_long_as_was_set_when_their_batch_ended: Restart Administration Results,
                a_large_batch_survives: Restart,
                a_closed_queue_refuses_calls: Restart,
            }
            shared {
                what_one_handle_pushes_the_other_claims: Shared,
                a_batch_of_a_dead_process_is_taken_over_and_the_late_holder_fenced_off: Shared,
                a_lease_is_good_on_every_handle: Shared,
                keys_and_ids_belong_to_the_queue_not_to_a_handle: Shared,
                two_handles_never_claim_the_same: Shared,
                a_push_of_one_handle_wakes_the_other: Shared WakeUps,
            }
            concurrency {
                requests_of_one_push_stay_next_to_each_other,
                concurrent_claims_never_share_a_request,
                one_of_many_claims_gets_the_orphan,
                one_of_many_ends_of_a_batch_wins,
                one_of_many_outcomes_of_a_member_wins,
                concurrent_pushes_of_one_key_add_one_request,
                concurrent_pushes_do_not_exceed_the_bounds: Bounds,
                every_reading_adds_up_while_others_work,
            }
            cancellation {
                a_dropped_push_adds_all_or_nothing_and_its_keys_tell,
                the_batch_of_a_dropped_claim_is_offered_again,
                a_dropped_read_changes_nothing,
                a_dropped_reading_changes_nothing,
                a_dropped_update_took_effect_or_did_not,
                a_dropped_end_of_a_batch_may_be_given_again,
                a_dropped_push_stores_its_bookmark_with_it: Bookmarks,
                dropped_pushes_take_no_room: Bounds,
                dropped_administration_took_effect_or_did_not: Administration,
            }
            clocks {
                ids_and_positions_grow_whatever_now_does,
                batch_ids_and_fences_are_never_given_twice_whatever_now_does,
                a_now_that_stands_still_holds_nothing_up,
                a_step_back_only_prolongs_a_lease,
                a_jump_ahead_offers_what_is_held_and_fences_its_holder_off,
                what_a_jump_ahead_brought_stays,
                what_a_jump_ahead_pushed_ages_from_when_it_is_seen,
                what_a_jump_ahead_deferred_is_not_lost,
                a_key_from_the_future_is_known_until_its_window_has_passed,
                what_was_done_in_the_future_is_kept: Administration Results,
                a_restart_does_not_trust_the_clock: Restart,
                downtime_counts: Restart,
                a_step_back_over_a_restart_undoes_nothing: Restart,
            }
            stress {
                sixty_four_producers_and_eight_dispatchers_lose_nothing,
                several_queues_are_busy_at_once: Store,
                closing_while_all_are_busy_loses_nothing: Restart,
            }
            many {
                many_members_are_settled_in_one_step,
                many_members_are_split_in_one_step,
                many_due_requests_are_promoted_in_one_step,
                many_requests_expire_in_one_step,
                many_too_large_requests_are_dead_in_one_claim,
                many_known_keys_are_known_in_one_push,
                many_requests_are_cancelled_in_one_step: Administration,
                many_dead_letters_are_redriven_in_order_in_one_step: Administration,
                many_dead_letters_are_purged_in_one_step: Administration,
                many_results_are_kept_read_and_forgotten: Administration Results,
                many_settled_members_are_settled_after_a_restart: Restart,
            }
            stores {
                a_queue_is_made_when_it_is_first_asked_for: Store,
                one_name_is_one_queue: Store,
                queues_of_one_store_share_nothing: Store,
                queues_are_listed_by_prefix_in_order: Store,
                a_store_that_tells_of_new_queues_tells_of_each: Store,
                closing_a_store_closes_its_queues: Store,
            }
            moments {
                a_moment_is_one_of_all_queues_and_stays_so: Moments,
                what_is_due_by_then_has_come_in_a_moment: Moments,
                a_queue_that_is_made_later_is_not_in_a_moment: Moments,
                a_store_has_few_moments_and_one_that_is_dropped_makes_room: Moments,
                a_moment_of_a_store_that_was_closed_is_no_dump: Moments,
                a_random_life_changes_no_moment: Moments,
            }
            transfer {
                what_is_dumped_and_restored_is_dumped_the_same: Transfer Administration,
                a_batch_that_was_held_is_offered_at_once_under_a_higher_fence: Transfer,
                a_restored_queue_goes_on_where_the_other_was: Transfer,
                a_restored_queue_survives_a_restart: Transfer Administration Restart,
                a_restore_without_its_end_leaves_nothing: Transfer,
                a_dump_that_is_not_whole_is_invalid_and_leaves_nothing: Transfer,
                what_no_queue_dumps_is_invalid_and_leaves_nothing: Transfer,
                a_queue_in_use_takes_no_dump: Transfer,
                a_handle_from_before_a_restore_gives_batches_their_ids: Transfer Shared,
                a_random_life_goes_on_in_other_queues: Transfer Bounds,
            }
            random {
                a_random_life_conserves_every_request,
                a_random_life_is_that_of_the_reference: Bounds,
                a_random_life_goes_on_across_restarts: Bounds Restart,
            }
        }
    };
}
