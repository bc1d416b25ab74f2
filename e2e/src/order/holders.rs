//! Who has the partitions of the load's consumer, by what the bucket says. Reads from NATS.

use std::collections::{BTreeMap, BTreeSet};

use async_nats::jetstream::Context;
use jetwright_partitions::{
    keys::{BUCKET_STREAM, Key, PartitionId},
    records::{HeldRecord, HeldState, MemberRecord, Record},
};

use super::load::Load;

/// How many partitions each pod has, by its UID.
///
/// # Errors
///
/// Not all of `count` partitions are held by a member that lives.
pub async fn holders(jetstream: &Context, count: u32) -> anyhow::Result<BTreeMap<String, u32>> {
    let bucket = jetstream.get_stream_no_info(BUCKET_STREAM).await?;
    let mut counts = BTreeMap::new();
    for partition in 0..count {
        let key = Key::Held(PartitionId { consumer: Load::consumer(), partition });
        let message = bucket.get_last_raw_message_by_subject(&key.subject()).await?;
        let held = HeldRecord::read(&key, &message.payload)?;
        anyhow::ensure!(held.state == HeldState::Held, "partition {partition}: {held:?}");
        let key = Key::Member(held.member);
        let message = bucket.get_last_raw_message_by_subject(&key.subject()).await?;
        let member = MemberRecord::read(&key, &message.payload)?;
        anyhow::ensure!(member.dead.is_none(), "partition {partition}: {member:?}");
        *counts.entry(member.uid.unwrap_or_default()).or_default() += 1;
    }
    Ok(counts)
}

/// Whether these pods, by their UIDs, have all of `count` partitions, and none more than its share.
///
/// # Errors
///
/// It is not so.
pub async fn ensure_shared(jetstream: &Context, count: u32, uids: &BTreeSet<String>) -> anyhow::Result<()> {
    let holders = holders(jetstream, count).await?;
    let share = count.div_ceil(u32::try_from(uids.len())?.max(1));
    let is_so = holders.iter().all(|(uid, held)| uids.contains(uid) && *held <= share);
    anyhow::ensure!(is_so, "{holders:?} of {uids:?}");
    Ok(())
}
