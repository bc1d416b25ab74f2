//! The interleavings that were faults, by name.

use super::{
    Fate, MAX_ATTEMPTS, Simulation,
    world::{Authorization, Request, World},
};
use crate::order::OrderResult;

fn is_rejected(simulation: &Simulation) -> bool {
    simulation.rejection().is_some()
}

fn never(_: &Request) -> bool {
    false
}

fn settles(mut simulation: Simulation) {
    simulation.settle();
    assert_eq!(simulation.check_settled(), Ok(()));
}

#[test]
fn an_order_whose_steps_pass_is_confirmed() {
    let mut simulation = Simulation::new(World::new());
    simulation.settle();
    assert!(matches!(simulation.network().world.ends[..], [OrderResult::Confirmed(_)]));
    settles(simulation);
}

#[test]
fn money_that_a_killed_attempt_authorized_is_voided_when_the_next_attempt_rejects_at_an_earlier_step() {
    let mut simulation = Simulation::new(World::new());
    let first = simulation.deliver().unwrap();
    assert!(simulation.advance(first, |request| matches!(request, Request::RecordPayment(_))));
    simulation.kill(first);
    simulation.network().world.user_exists = false;
    let second = simulation.deliver().unwrap();
    simulation.advance(second, never);
    assert!(is_rejected(&simulation));
    assert_eq!(simulation.network().world.authorization, Authorization::Authorized);
    settles(simulation);
}

#[test]
fn money_that_a_slow_attempt_asks_for_after_the_rejection_and_the_void_is_not_authorized() {
    let mut simulation = Simulation::new(World::new());
    let slow = simulation.deliver().unwrap();
    assert!(simulation.advance(slow, |request| *request == Request::Authorize));
    simulation.network().world.user_exists = false;
    let other = simulation.deliver().unwrap();
    simulation.advance(other, never);
    let compensation = simulation.compensate().unwrap();
    simulation.advance(compensation, never);
    assert!(simulation.fulfilled && simulation.compensated);
    assert!(simulation.advance(slow, |request| matches!(request, Request::EndOrder(..))));
    // No attempt is left that would undo anything.
    simulation.kill(slow);
    assert_eq!(simulation.check_settled(), Ok(()));
    settles(simulation);
}

#[test]
fn pieces_that_a_slow_attempt_wants_after_the_rejection_and_the_release_are_not_set_aside() {
    for stop in [
        (|request| matches!(request, Request::GetStock(_))) as fn(&Request) -> bool,
        |request| matches!(request, Request::IsCurrent(_)),
        |request| matches!(request, Request::UpdateStock(..)),
    ] {
        let mut simulation = Simulation::new(World::new());
        let slow = simulation.deliver().unwrap();
        assert!(simulation.advance(slow, stop));
        simulation.network().world.user_exists = false;
        let other = simulation.deliver().unwrap();
        simulation.advance(other, never);
        let compensation = simulation.compensate().unwrap();
        simulation.advance(compensation, never);
        assert!(simulation.fulfilled && simulation.compensated);
        assert!(!simulation.advance(slow, |request| *request == Request::Authorize));
        assert_eq!(simulation.check_settled(), Ok(()));
    }
}

#[test]
fn an_order_whose_gateway_is_away_for_all_attempts_is_rejected_by_the_last_and_undone() {
    let mut simulation = Simulation::new(World::new());
    for number in 1..=MAX_ATTEMPTS {
        assert!(!is_rejected(&simulation), "before attempt {number}");
        let attempt = simulation.deliver().unwrap();
        assert!(simulation.advance(attempt, |request| *request == Request::Authorize));
        simulation.network().gateway_away = number > 1;
        simulation.serve(0, Fate::AnswerLost);
        simulation.advance(attempt, never);
    }
    assert_eq!(simulation.network().world.authorization, Authorization::Authorized);
    assert!(is_rejected(&simulation) && simulation.fulfilled);
    settles(simulation);
}

#[test]
fn a_void_that_the_gateway_does_not_answer_is_repeated_until_it_does() {
    let mut simulation = Simulation::new(World::new());
    let first = simulation.deliver().unwrap();
    assert!(simulation.advance(first, |request| matches!(request, Request::RecordPayment(_))));
    simulation.kill(first);
    simulation.network().world.user_exists = false;
    let second = simulation.deliver().unwrap();
    simulation.advance(second, never);
    for _ in 0..20 {
        let compensation = simulation.compensate().unwrap();
        assert!(simulation.advance(compensation, |request| *request == Request::Void));
        simulation.serve(0, Fate::Lost);
        simulation.advance(compensation, never);
        assert!(!simulation.compensated);
    }
    // Each time by another process, and the user was notified once.
    assert_eq!(simulation.network().world.notifications, 1);
    settles(simulation);
}

#[test]
fn the_pieces_of_a_confirmed_order_are_handed_out_by_the_attempt_after_the_one_that_was_killed() {
    let mut simulation = Simulation::new(World::new());
    let first = simulation.deliver().unwrap();
    assert!(simulation.advance(first, |request| matches!(request, Request::EndOrder(..))));
    simulation.serve(0, Fate::AnswerLost);
    simulation.kill(first);
    simulation.network().world.user_exists = false;
    settles(simulation);
}
