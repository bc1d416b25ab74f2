//! What is known of who leads each stream, and for which of them JetStream does not answer. Decides nothing: [`super::availability`] does.

use std::collections::HashMap;

use tokio::time::Instant;

use super::{
    asset::Stream,
    cache::{Cache, Cached as _, Change},
    info::Standing,
    outage::Outage,
};

/// The streams that a server leads, as far as known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Led {
    /// Those that only it has.
    pub single: Vec<String>,
    pub replicated: Vec<String>,
    /// Those that are away.
    pub away: Vec<String>,
}

impl Cache {
    /// The streams by the server that leads them, or did when it was heard of last.
    #[must_use]
    pub fn led(&self) -> HashMap<String, Led> {
        let mut servers: HashMap<String, Led> = HashMap::new();
        Stream::entries(self).for_each_facts(|name, facts| {
            let Some(Standing { leader: Some(leader), replicated, .. }) = &facts.standing else { return };
            let led = servers.entry(leader.clone()).or_default();
            let group = match (&facts.outage, replicated) {
                (Some(_), _) => &mut led.away,
                (None, true) => &mut led.replicated,
                (None, false) => &mut led.single,
            };
            group.push(name.clone());
        });
        servers
    }

    /// Streams of which it was heard that they have no leader.
    #[must_use]
    pub fn doubtful(&self) -> Vec<String> {
        let mut names = Vec::new();
        Stream::entries(self).for_each_facts(|name, facts| {
            if facts.doubtful && facts.outage.is_none() {
                names.push(name.clone());
            }
        });
        names
    }

    /// Whether no leader of a stream was heard of since.
    #[must_use]
    pub fn is_leaderless_since(&self, stream: &str, since: Instant) -> bool {
        let elected = Stream::entries(self).with_facts(&stream.to_owned(), |facts| facts.elected);
        elected.is_some_and(|elected| elected.is_none_or(|elected| elected <= since))
    }

    /// Takes note of who leads a stream. That one which was away is back, is noted when it is read.
    pub fn note(&self, stream: &str, standing: &Standing) {
        Stream::entries(self).with_facts(&stream.to_owned(), |facts| {
            if facts.outage.is_none() {
                facts.observe(Some(standing));
            }
        });
    }

    pub fn forget_doubt(&self, stream: &str) {
        Stream::entries(self).with_facts(&stream.to_owned(), |facts| facts.doubtful = false);
    }

    /// Marks streams that are away.
    pub fn mark_away(&self, streams: Vec<(String, Outage)>) {
        let mut marked = Vec::new();
        for (name, outage) in streams {
            let known = Stream::entries(self).with_facts(&name, |facts| facts.outage = Some(outage));
            if known.is_some() {
                marked.push(name);
            }
        }
        if !marked.is_empty() {
            tracing::warn!(count = marked.len(), first = marked[0], "JetStream does not answer for streams");
            self.outages().send_replace(());
            self.notify(Change::Availability(marked.into()));
        }
    }

    /// Why JetStream does not answer for a stream.
    #[must_use]
    pub fn outage(&self, stream: &str) -> Option<Outage> {
        Stream::entries(self).with_facts(&stream.to_owned(), |facts| facts.outage.clone())?
    }

    /// Ends when JetStream does not answer for a stream.
    pub async fn await_outage(&self, stream: &str) -> Outage {
        let mut outages = self.outages().subscribe();
        loop {
            if let Some(outage) = self.outage(stream) {
                return outage;
            }
            // The cache lives as long as who waits here.
            let _ = outages.changed().await;
        }
    }

    #[must_use]
    pub fn any_outage(&self) -> bool {
        let mut any = false;
        Stream::entries(self).for_each_facts(|_, facts| any |= facts.outage.is_some());
        any
    }

    /// A stream has this leader since now. Whether it has to be read again: it was away, or another leader described it.
    pub fn elected(&self, stream: &str, leader: &str) -> bool {
        let elected = Stream::entries(self).with_facts(&stream.to_owned(), |facts| {
            facts.elected = Some(Instant::now());
            facts.doubtful = false;
            let known = facts.standing.as_mut().map(|standing| &mut standing.leader);
            let is_another =
                known.is_some_and(|known| known.replace(leader.to_owned()).as_deref() != Some(leader));
            is_another || facts.outage.is_some()
        });
        elected.unwrap_or_default()
    }

    /// A stream lost its leader, since too few of its servers are there.
    pub fn lost_quorum(&self, stream: &str) {
        let entries = Stream::entries(self);
        if entries.with_facts(&stream.to_owned(), |facts| facts.doubtful = true).is_some() {
            self.doubts().notify_one();
        }
    }
}
