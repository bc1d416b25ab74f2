//! Reads what is written to keys, one message after another from the leader of the bucket's stream. Slower than a delivery, but every message
//! can be read: JSON also carries what ends the connection over which it is delivered.

use serde_json::json;
use tokio::sync::mpsc;

use super::{
    Bucket,
    entry::Change,
    watch::{Ended, WatchEvent},
};
use crate::stored::StoredMessage;

/// How far a watch told what was written.
#[derive(Debug)]
pub(super) struct Told {
    /// The subjects that are watched, and the revision up to which everything under each is told.
    subjects: Vec<(String, u64)>,
}

/// Messages that end the connection over which they are delivered.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unparsable {
    count: u64,
    /// Subject of the first, and what is wrong with it.
    first: Option<(String, String)>,
}

impl Told {
    /// Nothing yet.
    pub(super) fn new(subjects: &[String]) -> Self {
        Self { subjects: subjects.iter().map(|subject| (subject.clone(), 0)).collect() }
    }

    /// Everything is to be told again.
    pub(super) fn forget(&mut self) {
        self.subjects.iter_mut().for_each(|(_, told)| *told = 0);
    }

    /// Everything up to this revision is told.
    pub(super) fn note(&mut self, revision: u64) {
        self.subjects.iter_mut().for_each(|(_, told)| *told = (*told).max(revision));
    }

    /// The newest revision that is told. When everything was read once more since, everything up to it is told.
    pub(super) fn newest(&self) -> u64 {
        self.subjects.iter().map(|(_, told)| *told).max().unwrap_or_default()
    }

    pub(super) fn subjects(&self) -> impl Iterator<Item = &str> {
        self.subjects.iter().map(|(subject, _)| subject.as_str())
    }

    /// Reads and tells what is not told yet under each subject.
    pub(super) async fn read(
        &mut self,
        bucket: &Bucket,
        sender: &mpsc::Sender<WatchEvent>,
    ) -> Result<Unparsable, Ended> {
        let mut unparsable = Unparsable::default();
        for (subject, told) in &mut self.subjects {
            loop {
                let next = json!({"seq": *told + 1, "next_by_subj": *subject});
                let Some(message) = bucket.get(&next).await? else { break };
                let (key, change) = (bucket.key_of(&message.subject), Change::stored(&message));
                let event = WatchEvent::of(key, message.sequence, change);
                sender.send(event).await.map_err(|_| Ended::Unread)?;
                unparsable.add(&message);
                *told = message.sequence;
            }
        }
        Ok(unparsable)
    }
}

impl Unparsable {
    fn add(&mut self, message: &StoredMessage) {
        if let Some(why) = message.unparsable() {
            self.count += 1;
            self.first.get_or_insert_with(|| (message.subject.clone(), why));
        }
    }

    /// Says who wrote them, by their subject; whether there are any.
    pub(super) fn report(&self) -> bool {
        let Some((subject, why)) = &self.first else { return false };
        let others = self.count - 1;
        tracing::warn!(
            subject,
            why,
            others,
            "a message in the bucket cannot be parsed by NATS clients, which close their connection on it: for a minute the bucket is read by \
             STREAM.MSG.GET instead of a consumer. Find who may publish to the subject"
        );
        true
    }
}
