//! Who has the partitions of the load's consumer, by what the bucket says. Reads from NATS.

use std::collections::BTreeMap;

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
