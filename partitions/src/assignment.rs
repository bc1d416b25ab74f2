//! Which member each partition belongs to. Pure.
//!
//! In: the members that may have partitions, and where each partition is. Out: the member that each belongs to.
//!
//! Four phases, each with what holds after it:
//!
//! 1. *Drop the gone*: a partition has a home if the member that handles it, or that it is meant for, may have partitions. One that
//!    is being handed over keeps its target: a hand-over under way is never redirected.
//! 2. *Relieve the overloaded*: each member gets a number of partitions. Partitions without a home go to who has fewest, and then one
//!    moves from who has most to who has fewest only while these differ by more than one.
//! 3. *Keep the rest at home*: of its partitions a member keeps as many as its number, and first those that it handles already.
//! 4. *Place greedily*: what is left goes to who is furthest from its number.

use std::collections::{BTreeMap, BTreeSet};

use crate::keys::MemberId;

/// A member that may have partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub id: MemberId,
    /// Whether it may get more than it has. A pod of an earlier template only keeps what it has, where one of the new template is there.
    pub may_receive: bool,
}

/// Where a partition is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The member that handles or drains it, if that is alive.
    pub holder: Option<MemberId>,
    /// The member that it is meant for.
    pub to: Option<MemberId>,
}

/// The member that each partition belongs to; empty where no member may have partitions.
#[must_use]
pub fn assign(
    count: u32,
    candidates: &[Candidate],
    places: &BTreeMap<u32, Place>,
) -> BTreeMap<u32, MemberId> {
    if candidates.is_empty() {
        return BTreeMap::new();
    }
    let nowhere = Place::default();
    let place = |partition: &u32| places.get(partition).unwrap_or(&nowhere);
    let homes = drop_the_gone(count, candidates, place);
    debug_assert!(homes.values().all(|home| candidates.iter().any(|candidate| candidate.id == home.id)));
    let quotas = relieve_the_overloaded(count, candidates, &homes);
    debug_assert_eq!(quotas.values().sum::<u32>(), count);
    let kept = keep_the_rest(&homes, &quotas, place);
    debug_assert!(load_of(&kept).iter().all(|(member, load)| *load <= quotas[member]));
    let assignment = place_greedily(count, kept, &quotas);
    debug_assert!((0..count).all(|partition| assignment.contains_key(&partition)));
    assignment
}

/// The member that a partition stays with where nothing has to change.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Home {
    id: MemberId,
    /// It is being handed over to that member.
    is_pinned: bool,
}

fn drop_the_gone<'p>(
    count: u32,
    candidates: &[Candidate],
    place: impl Fn(&u32) -> &'p Place,
) -> BTreeMap<u32, Home> {
    let ids: BTreeSet<_> = candidates.iter().map(|candidate| &candidate.id).collect();
    let candidate = |id: &Option<MemberId>| id.clone().filter(|id| ids.contains(id));
    let home = |partition| {
        let place = place(&partition);
        let id = candidate(&place.to).or_else(|| candidate(&place.holder))?;
        let is_pinned = place.holder.as_ref().is_some_and(|holder| *holder != id);
        Some((partition, Home { id, is_pinned }))
    };
    (0..count).filter_map(home).collect()
}

/// How many partitions each member gets.
fn relieve_the_overloaded(
    count: u32,
    candidates: &[Candidate],
    homes: &BTreeMap<u32, Home>,
) -> BTreeMap<MemberId, u32> {
    let nobody_receives = candidates.iter().all(|candidate| !candidate.may_receive);
    let mut quotas: BTreeMap<_, u32> = candidates.iter().map(|candidate| (candidate.id.clone(), 0)).collect();
    let mut movable = quotas.clone();
    for Home { id, is_pinned } in homes.values() {
        *quotas.entry(id.clone()).or_default() += 1;
        *movable.entry(id.clone()).or_default() += u32::from(!is_pinned);
    }
    let least_loaded = |quotas: &BTreeMap<MemberId, u32>| {
        let receives = candidates.iter().filter(|candidate| candidate.may_receive || nobody_receives);
        receives.map(|candidate| (quotas[&candidate.id], candidate.id.clone())).min()
    };
    for _ in homes.len()..usize::try_from(count).unwrap_or(usize::MAX) {
        if let Some((_, least)) = least_loaded(&quotas) {
            *quotas.entry(least).or_default() += 1;
        }
    }
    while let Some((fewest, least)) = least_loaded(&quotas)
        && let Some((most, largest)) =
            quotas.iter().filter(|(id, _)| movable[*id] > 0).map(|(id, load)| (*load, id.clone())).max()
        && most > fewest + 1
    {
        *quotas.entry(largest.clone()).or_default() -= 1;
        *movable.entry(largest).or_default() -= 1;
        *quotas.entry(least).or_default() += 1;
    }
    quotas
}

fn keep_the_rest<'p>(
    homes: &BTreeMap<u32, Home>,
    quotas: &BTreeMap<MemberId, u32>,
    place: impl Fn(&u32) -> &'p Place,
) -> BTreeMap<u32, MemberId> {
    let mut by_value: Vec<_> = homes.iter().collect();
    by_value.sort_by_key(|(partition, home)| {
        let is_handled = place(partition).holder.as_ref() == Some(&home.id);
        (!home.is_pinned, !is_handled, **partition)
    });
    let mut left = quotas.clone();
    let mut kept = BTreeMap::new();
    for (partition, home) in by_value {
        if let Some(left) = left.get_mut(&home.id).filter(|left| **left > 0) {
            *left -= 1;
            kept.insert(*partition, home.id.clone());
        }
    }
    kept
}

fn place_greedily(
    count: u32,
    mut placed: BTreeMap<u32, MemberId>,
    quotas: &BTreeMap<MemberId, u32>,
) -> BTreeMap<u32, MemberId> {
    let mut left = quotas.clone();
    for (member, load) in load_of(&placed) {
        left.entry(member).and_modify(|left| *left -= load);
    }
    for partition in 0..count {
        if placed.contains_key(&partition) {
            continue;
        }
        // Of those with as much room, the first.
        let furthest = left.iter_mut().rev().max_by_key(|(_, left)| **left);
        if let Some((member, left)) = furthest {
            *left = left.saturating_sub(1);
            placed.insert(partition, member.clone());
        }
    }
    placed
}

/// How many partitions each member has, of those that have any.
fn load_of(assignment: &BTreeMap<u32, MemberId>) -> BTreeMap<MemberId, u32> {
    let mut loads = BTreeMap::new();
    for member in assignment.values() {
        *loads.entry(member.clone()).or_default() += 1;
    }
    loads
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*, sample::Index};

    use super::*;

    fn member(number: usize) -> MemberId {
        MemberId::new("shop", &format!("m{number}")).unwrap()
    }

    fn candidates(numbers: impl IntoIterator<Item = usize>) -> Vec<Candidate> {
        numbers.into_iter().map(|number| Candidate { id: member(number), may_receive: true }).collect()
    }

    /// Everything has arrived where it was to be.
    fn arrived(assignment: &BTreeMap<u32, MemberId>) -> BTreeMap<u32, Place> {
        let place = |id: &MemberId| Place { holder: Some(id.clone()), to: Some(id.clone()) };
        assignment.iter().map(|(partition, id)| (*partition, place(id))).collect()
    }

    fn loads(assignment: &BTreeMap<u32, MemberId>, candidates: &[Candidate]) -> Vec<u32> {
        let loads = load_of(assignment);
        candidates.iter().map(|candidate| loads.get(&candidate.id).copied().unwrap_or(0)).collect()
    }

    /// Whether it is on its way from one member to another.
    fn is_handed_over(Place { holder, to }: &Place) -> bool {
        holder.is_some() && to.is_some() && holder != to
    }

    fn is_balanced(loads: &[u32]) -> bool {
        loads.iter().max().zip(loads.iter().min()).is_none_or(|(most, fewest)| most - fewest <= 1)
    }

    fn moves(before: &BTreeMap<u32, MemberId>, after: &BTreeMap<u32, MemberId>) -> usize {
        after
            .iter()
            .filter(|(partition, id)| before.get(partition).is_some_and(|before| before != *id))
            .count()
    }

    #[test]
    fn without_members_nothing_is_assigned() {
        assert_eq!(assign(8, &[], &BTreeMap::new()), BTreeMap::new());
        assert_eq!(assign(0, &candidates([1]), &BTreeMap::new()), BTreeMap::new());
    }

    #[test]
    fn partitions_are_shared_out_evenly() {
        let three = candidates([1, 2, 3]);
        assert_eq!(loads(&assign(8, &three, &BTreeMap::new()), &three), [3, 3, 2]);
        assert_eq!(loads(&assign(2, &three, &BTreeMap::new()), &three), [1, 1, 0]);
    }

    #[test]
    fn partitions_that_nobody_has_go_to_the_members_in_turn() {
        let assignment = assign(8, &candidates([1, 2, 3]), &BTreeMap::new());
        let numbers = assignment.into_values().collect::<Vec<_>>();
        assert_eq!(numbers, [1, 2, 1, 2, 3, 1, 2, 3].map(member), "first to those that get one more");
    }

    #[test]
    fn beside_what_is_handed_over_to_a_member_only_the_rest_of_its_partitions_moves() {
        let coming = Place { holder: Some(member(9)), to: Some(member(1)) };
        let mut places: BTreeMap<_, _> = (1..5).map(|partition| (partition, coming.clone())).collect();
        places.insert(0, Place { holder: Some(member(1)), to: Some(member(1)) });
        let assignment = assign(5, &candidates([1, 2]), &places);
        assert_eq!(assignment.into_values().collect::<Vec<_>>(), [2, 1, 1, 1, 1].map(member));
    }

    #[test]
    fn a_partition_that_is_handed_over_keeps_its_target_unless_that_is_gone() {
        let on_its_way = Place { holder: Some(member(1)), to: Some(member(2)) };
        let places: BTreeMap<_, _> = (0..4).map(|partition| (partition, on_its_way.clone())).collect();
        let assignment = assign(4, &candidates([1, 2]), &places);
        assert_eq!(loads(&assignment, &candidates([1, 2])), [0, 4], "it evens out when they have arrived");
        let back = assign(4, &candidates([1, 3]), &places);
        assert_eq!(loads(&back, &candidates([1, 3])), [2, 2]);
    }

    #[test]
    fn of_too_many_a_member_keeps_those_that_it_handles() {
        let meant = |holder: Option<usize>| Place { holder: holder.map(member), to: Some(member(1)) };
        let places = [(0, meant(None)), (1, meant(Some(1))), (2, meant(None)), (3, meant(Some(1)))].into();
        let assignment = assign(4, &candidates([1, 2]), &places);
        assert_eq!(assignment, [(0, member(2)), (1, member(1)), (2, member(2)), (3, member(1))].into());
    }

    #[test]
    fn in_a_rollout_members_of_the_old_template_get_nothing_and_give_way() {
        let mut mixed = candidates([1, 2, 3, 4]);
        let before = assign(8, &mixed[..3], &BTreeMap::new());
        for old in &mut mixed[..3] {
            old.may_receive = false;
        }
        let with_first = assign(8, &mixed, &arrived(&before));
        assert_eq!(loads(&with_first, &mixed), [2, 2, 2, 2]);
        assert_eq!(moves(&before, &with_first), 2);
        let without_one = assign(8, &mixed[1..], &arrived(&with_first));
        assert_eq!(loads(&without_one, &mixed[1..]), [2, 2, 4], "what was its goes to the new template");
        assert_eq!(
            loads(&assign(8, &mixed[..3], &arrived(&before)), &mixed[..3]),
            [3, 3, 2],
            "nobody else is there"
        );
    }

    #[derive(Debug, Clone)]
    struct Case {
        count: u32,
        candidates: Vec<Candidate>,
        places: BTreeMap<u32, Place>,
    }

    fn any_case() -> impl Strategy<Value = Case> {
        let candidate = (any::<bool>(), any::<bool>());
        let place = (option::of(any::<Index>()), option::of(any::<Index>()));
        (vec(candidate, 1..8), vec(place, 0..40)).prop_map(|(members, places)| {
            let id = |index: &Index| member(index.index(members.len()));
            let places = (0..).zip(&places).map(|(partition, (holder, to))| {
                (partition, Place { holder: holder.as_ref().map(id), to: to.as_ref().map(id) })
            });
            let places: BTreeMap<_, _> = places.collect();
            let present = members.iter().enumerate().filter(|(_, (is_candidate, _))| *is_candidate);
            let candidates = present.map(|(number, (_, may_receive))| Candidate {
                id: member(number),
                may_receive: *may_receive,
            });
            Case { count: u32::try_from(places.len()).unwrap(), candidates: candidates.collect(), places }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_024))]

        #[test]
        fn whatever_was_before_each_partition_has_one_member_and_a_second_look_changes_nothing(case in any_case()) {
            let Case { count, candidates, places } = &case;
            let assignment = assign(*count, candidates, places);
            if candidates.is_empty() {
                return Ok(());
            }
            prop_assert_eq!(assignment.keys().copied().collect::<Vec<_>>(), (0..*count).collect::<Vec<_>>());
            let meant = |(partition, id): (&u32, &MemberId)| {
                let holder = places.get(partition).and_then(|place| place.holder.clone());
                (*partition, Place { holder, to: Some(id.clone()) })
            };
            let again = assign(*count, candidates, &assignment.iter().map(meant).collect());
            prop_assert_eq!(&again, &assignment, "while partitions are on their way");
            let settled = assign(*count, candidates, &arrived(&assignment));
            if places.values().any(is_handed_over) {
                return Ok(());
            }
            prop_assert_eq!(&settled, &assignment, "when they have arrived");
        }

        #[test]
        fn without_hand_overs_and_rollouts_it_is_balanced_within_one(case in any_case()) {
            let Case { count, mut candidates, mut places } = case;
            for candidate in &mut candidates {
                candidate.may_receive = true;
            }
            places.values_mut().filter(|place| is_handed_over(place)).for_each(|place| place.holder = None);
            let loads = loads(&assign(count, &candidates, &places), &candidates);
            prop_assert!(is_balanced(&loads), "{loads:?}");
        }

        #[test]
        fn a_partition_leaves_a_member_only_for_one_that_had_at_least_two_fewer(case in any_case()) {
            let Case { count, candidates, places } = &case;
            let ids: BTreeSet<_> = candidates.iter().map(|candidate| candidate.id.clone()).collect();
            let home = |place: &Place| {
                let [to, holder] = [&place.to, &place.holder].map(|id| id.clone().filter(|id| ids.contains(id)));
                to.or(holder)
            };
            let homes = places.iter().filter_map(|(partition, place)| Some((*partition, home(place)?)));
            let homes: BTreeMap<_, _> = homes.collect();
            let before = load_of(&homes);
            let load = |id| before.get(id).copied().unwrap_or(0);
            let after = assign(*count, candidates, places);
            for (partition, id) in &homes {
                let new = &after[partition];
                prop_assert!(new == id || load(id) >= load(new) + 2, "{} from {} to {}", partition, id, new);
                let is_pinned = is_handed_over(&places[partition]) && places[partition].to.as_ref() == Some(id);
                prop_assert!(new == id || !is_pinned, "{} is on its way to {}", partition, id);
            }
            let may_receive = |id: &MemberId| candidates.iter().any(|candidate| candidate.id == *id && candidate.may_receive);
            if candidates.iter().any(|candidate| candidate.may_receive) {
                for (partition, id) in after {
                    prop_assert!(homes.get(&partition) == Some(&id) || may_receive(&id), "{} to old {}", partition, id);
                }
            }
        }

        #[test]
        fn a_member_that_comes_takes_its_share_and_one_that_goes_leaves_its_own(count in 0..64_u32, members in 1..9_usize) {
            let all = candidates(0..=members);
            let before = assign(count, &all[..members], &BTreeMap::new());
            let with = assign(count, &all, &arrived(&before));
            let share = count / u32::try_from(members + 1).unwrap();
            prop_assert_eq!(moves(&before, &with), usize::try_from(share).unwrap());
            prop_assert!(is_balanced(&loads(&with, &all)));
            let without = assign(count, &all[1..], &arrived(&with));
            let of_the_gone = with.values().filter(|id| **id == all[0].id).count();
            prop_assert_eq!(moves(&with, &without), of_the_gone);
            prop_assert!(is_balanced(&loads(&without, &all[1..])));
        }
    }
}
