//! The contract of `connector::transport`: one suite, run for the loopback transport and for UCX over TCP.
//!
//! Each side records the commands that it submitted. Each test ends with the check that every accepted command got exactly one
//! answer. The cases with two processes start this test binary again as the peer.

#[path = "transport_conformance/cases.rs"]
mod cases;
#[path = "transport_conformance/failures.rs"]
mod failures;
#[path = "transport_conformance/processes.rs"]
mod processes;
#[path = "transport_conformance/shards.rs"]
mod shards;
#[path = "transport_conformance/side.rs"]
mod side;

macro_rules! conformance {
    ($($module:ident :: $case:ident),* $(,)?) => {
        mod loopback {
            $(#[test]
            fn $case() {
                super::$module::$case(super::side::Kind::Loopback);
            })*
        }

        mod ucx_over_tcp {
            $(#[test]
            fn $case() {
                super::$module::$case(super::side::Kind::Ucx);
            })*
        }
    };
}

conformance! {
    cases::puts_of_every_size_arrive,
    cases::many_puts_in_flight_arrive,
    cases::several_sessions_share_a_receiver,
    cases::a_session_may_connect_to_its_own_transport,
    cases::a_full_queue_refuses_and_recovers,
    cases::close_drains_what_is_in_flight,
    cases::sessions_open_and_close_many_times,
    cases::shutdown_is_idempotent_and_answers_everything,
    cases::the_watchdog_sees_progress,
    shards::pages_in_shards_arrive_whole,
    shards::a_lane_that_is_not_flushed_is_missing_from_the_page,
    shards::nodes_whose_shards_do_not_fit_are_refused,
    failures::invalid_puts_fail_with_an_event,
    failures::commands_for_an_unknown_session_are_answered,
    failures::garbage_descriptors_are_refused,
    failures::a_receiver_that_closes_fails_only_that_session,
    failures::nothing_is_written_after_the_receiver_closed,
    failures::any_sequence_of_commands_has_one_answer_each,
}
