//! What a member takes where no operator is there. Pure.
//!
//! In: how many members there are, which place this one has among them, and what may be taken. Out: the partitions to take. Members begin
//! at different partitions, so that they rarely want the same; where they do, the revision decides.

/// The partitions that this member takes: no more than an even share with those that it has.
///
/// `rank` is its place among the members in the order of their ids, from 0; `held` counts the partitions that it has.
#[must_use]
pub fn choose(count: u32, members: u32, rank: u32, held: u32, is_takeable: impl Fn(u32) -> bool) -> Vec<u32> {
    let share = count.div_ceil(members.max(1));
    let room = usize::try_from(share.saturating_sub(held)).unwrap_or(usize::MAX);
    let first = share.saturating_mul(rank).min(count);
    (first..count).chain(0..first).filter(|partition| is_takeable(*partition)).take(room).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn members_take_an_even_share_of_what_is_free() {
        assert_eq!(choose(8, 3, 0, 0, |_| true), [0, 1, 2]);
        assert_eq!(choose(8, 3, 2, 0, |_| true), [6, 7, 0]);
        assert_eq!(choose(8, 3, 0, 2, |partition| partition > 5), [6]);
        assert_eq!(choose(8, 3, 0, 3, |_| true), Vec::<u32>::new());
        assert_eq!(choose(2, 5, 4, 0, |_| true), [0]);
        assert_eq!(choose(0, 0, 0, 0, |_| true), Vec::<u32>::new());
    }

    proptest! {
        #[test]
        fn one_after_another_they_take_everything(count in 0..64_u32, members in 1..9_u32) {
            let mut taken = std::collections::BTreeSet::new();
            for rank in 0..members {
                let chosen = choose(count, members, rank, 0, |partition| !taken.contains(&partition));
                prop_assert!(chosen.len() <= usize::try_from(count.div_ceil(members)).unwrap());
                taken.extend(chosen);
            }
            prop_assert_eq!(taken.len(), usize::try_from(count).unwrap());
        }
    }
}
