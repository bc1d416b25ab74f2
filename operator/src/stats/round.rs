//! One sample of everything on a connection. In: JetStream's lists. Out: the sample.
//!
//! It asks for each page of streams, for the pages of consumers of each stream that has an object's, and for the number of dead letters
//! where there are others than before.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    pin::pin,
    sync::Arc,
};

use futures::TryStreamExt as _;
use jetwright_crds::{EventConsumer, EventStream, dead_letter};
use jetwright_nats::{Api, ApiError};

use super::{
    answer::{Contents, ListedConsumer, ListedStream},
    assets::ReplicatedAssets,
    dead_letters::{Counted, known},
    pace::Pace,
    parts::{Parts, Whole},
    sample::{Intern, Sample, now},
};
use crate::{
    context::Context,
    jetstream::{connections::Connection, ownership::Owner, pages::pages},
    kubernetes::stores::{IndexKey, Name, name_of},
};

/// Requests in a row without an answer after which JetStream is left alone until the next round.
const MAX_UNANSWERED: u32 = 3;
/// Rounds after which the right to list consumers is tried again where it was missing: the servers complain of each try.
const ROUNDS_UNTIL_RETRY: u32 = 20;

/// Whether consumers may be listed.
#[derive(Default)]
pub struct ConsumerLists {
    /// Rounds until it is tried again; 0 where they may be.
    forbidden_for: u32,
}

/// What a round has.
pub struct Round<'a> {
    pub context: &'a Context,
    pub connection: &'a Connection,
    pub api: &'a Api,
    pub pace: &'a Pace,
    pub sample: &'a Sample,
    pub with_peers: bool,
    /// Of servers and streams.
    pub names: &'a mut Intern,
    pub lists: &'a mut ConsumerLists,
}

/// Why a round ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to list streams")]
    Streams(#[source] ApiError),
    #[error("JetStream left {MAX_UNANSWERED} requests in a row unanswered")]
    Unanswered,
}

/// What the lists of streams have.
#[derive(Default)]
struct Streams {
    listed: HashMap<Arc<str>, Contents>,
    /// Those whose servers did not answer.
    missing: Vec<String>,
}

/// An object's consumer.
struct Target {
    owner: Owner,
    object: Name,
    consumer: String,
    /// What it is in JetStream, several with partitions: first those that have to be there, and then those that it is divided into.
    names: Vec<String>,
    wanted: usize,
    keeps_dead_letters: bool,
}

impl Target {
    /// Each of its names, and whether that one has to be there.
    fn consumers(&self) -> impl Iterator<Item = (&str, bool)> {
        self.names.iter().enumerate().map(|(number, name)| (name.as_str(), number < self.wanted))
    }
}

impl Round<'_> {
    /// # Errors
    ///
    /// Those that leave a part as it was.
    pub async fn run(&mut self) -> Result<(), Error> {
        self.drop_what_is_gone();
        let streams = self.streams().await.map_err(Error::Streams)?;
        self.lists.forbidden_for = self.lists.forbidden_for.saturating_sub(1);
        let mut unanswered = 0;
        for (stream, targets) in self.targets() {
            if streams.missing.contains(&stream) {
                continue;
            }
            if !streams.listed.contains_key(stream.as_str()) {
                for target in &targets {
                    self.sample.consumers.missed(&target.object);
                }
                continue;
            }
            match self.of_stream(&stream, &targets, &streams).await {
                Err(ApiError::Unanswered { .. }) => unanswered += 1,
                Err(_) | Ok(()) => unanswered = 0,
            }
            if unanswered >= MAX_UNANSWERED {
                return Err(Error::Unanswered);
            }
        }
        Ok(())
    }

    fn drop_what_is_gone(&mut self) {
        let scope = |name: &Name| self.context.scopes.of(&name.0);
        self.sample.streams.retain(|name| {
            scope(name).is_some_and(|scope| scope.event_streams.get(&name.0, &name.1).is_some())
        });
        self.sample.consumers.retain(|name| {
            scope(name).is_some_and(|scope| scope.event_consumers.get(&name.0, &name.1).is_some())
        });
        self.names.prune();
    }

    async fn streams(&mut self) -> Result<Streams, ApiError> {
        let (mut found, mut sampled) = (Streams::default(), HashSet::new());
        let mut assets = ReplicatedAssets::default();
        let (api, pace) = (self.api, self.pace);
        let ask = |offset| async move {
            pace.turn().await;
            api.list_streams::<ListedStream>(offset).await
        };
        let mut pages = pin!(pages(ask, ListedStream::name));
        while let Some(page) = pages.try_next().await? {
            let at = now();
            for listed in &page.items {
                let stream = self.names.get(listed.name());
                assets.count(listed, self.names);
                found.listed.insert(stream.clone(), listed.contents());
                if let Some(object) = self.owner_of_stream(listed) {
                    let figures = listed.figures(self.with_peers, self.names);
                    self.sample.streams.set(object.clone(), (stream, ""), Some(figures), at);
                    sampled.insert(object);
                }
            }
            for stream in &page.missing {
                for object in self.objects_with_stream(stream) {
                    self.sample.streams.set(object.clone(), (self.names.get(stream), ""), None, at);
                    sampled.insert(object);
                }
            }
            found.missing.extend(page.missing);
        }
        *self.sample.assets.lock() = assets;
        for (object, _) in self.sample.streams.all() {
            if self.is_here(&object.0) && !sampled.contains(&object) {
                self.sample.streams.missed(&object);
            }
        }
        Ok(found)
    }

    /// Whether this connection serves a namespace.
    fn is_here(&self, namespace: &str) -> bool {
        self.connection.serves.contains(namespace)
    }

    /// The object that a listed stream is marked as the own of, if there is one that declares it.
    fn owner_of_stream(&self, listed: &ListedStream) -> Option<Name> {
        let mark = listed.owner()?;
        let (rest, name) = mark.rsplit_once('/')?;
        let (_, namespace) = rest.rsplit_once('/')?;
        let scope = self.context.scopes.of(namespace).filter(|_| self.is_here(namespace))?;
        let object = scope.event_streams.get(namespace, name)?;
        let object: &EventStream = object.valid()?;
        let owner = Owner::new(&self.context.cluster, object);
        let is_own = object.stream_name() == listed.name() && owner.is_named_by(mark);
        is_own.then(|| name_of(object))
    }

    /// The objects whose stream, as their status says, is one of which JetStream says no more than its name.
    fn objects_with_stream(&self, stream: &str) -> Vec<Name> {
        let key = IndexKey::JetStream(stream.to_owned());
        let objects = self.context.scopes.all().flat_map(|scope| scope.event_streams.by(&key));
        let has_it = |object: &Arc<EventStream>| {
            let status = object.status.as_ref().and_then(|status| status.stream.as_ref());
            status.is_some_and(|known| known.name == stream)
        };
        let own = objects.filter(has_it).map(|object| name_of(object.as_ref()));
        own.filter(|object| self.is_here(&object.0)).collect()
    }

    /// The consumers of all objects, by their stream.
    fn targets(&self) -> BTreeMap<String, Vec<Target>> {
        let mut targets = BTreeMap::<_, Vec<_>>::new();
        for scope in self.context.scopes.all() {
            for consumer in scope.event_consumers.all() {
                let object = name_of(consumer.as_ref());
                if self.is_here(&object.0)
                    && let Some(stream) = scope.event_stream_of(&consumer)
                {
                    let target = self.target(&consumer, &stream, object);
                    targets.entry(stream.stream_name()).or_default().push(target);
                }
            }
        }
        targets
    }

    fn target(&self, consumer: &EventConsumer, stream: &EventStream, object: Name) -> Target {
        let name = consumer.consumer_name();
        let (there, coming) = consumer.jetstream_names_by_status(stream);
        Target {
            owner: Owner::new(&self.context.cluster, consumer),
            object,
            wanted: there.len(),
            names: [there, coming].concat(),
            consumer: name,
            keeps_dead_letters: consumer.spec.dead_letter_max_age().is_some(),
        }
    }

    /// Samples the objects' consumers of one stream.
    async fn of_stream(
        &mut self,
        stream: &str,
        targets: &[Target],
        streams: &Streams,
    ) -> Result<(), ApiError> {
        let mut listed = false;
        if self.lists.forbidden_for == 0 {
            match self.list(stream, targets).await {
                Err(ApiError::NotPermitted { violation }) => {
                    self.connection.cache.lists_are_forbidden(&violation);
                    self.lists.forbidden_for = ROUNDS_UNTIL_RETRY;
                }
                answer => listed = answer.map(|()| true)?,
            }
        }
        if !listed {
            self.ask_for_each(stream, targets).await?;
        }
        self.dead_letters(stream, targets, streams).await
    }

    async fn list(&mut self, stream: &str, targets: &[Target]) -> Result<(), ApiError> {
        let (api, pace) = (self.api, self.pace);
        let ask = |offset| async move {
            pace.turn().await;
            api.list_consumers::<ListedConsumer>(stream, offset).await
        };
        let mut pages = pin!(pages(ask, ListedConsumer::name));
        let mut found: Vec<_> = targets.iter().map(|target| Parts::of(target.wanted)).collect();
        let mut by_name: HashMap<&str, Vec<(usize, bool)>> = HashMap::new();
        for (index, target) in targets.iter().enumerate() {
            for (name, is_wanted) in target.consumers() {
                by_name.entry(name).or_default().push((index, is_wanted));
            }
        }
        let mut at = now();
        while let Some(page) = pages.try_next().await? {
            at = now();
            for listed in &page.items {
                for (index, is_wanted) in by_name.get(listed.name()).into_iter().flatten() {
                    let is_own = listed.owner().is_some_and(|mark| targets[*index].owner.is_named_by(mark));
                    if is_own {
                        found[*index].add(Some(listed.figures()), *is_wanted);
                    }
                }
            }
            for name in &page.missing {
                for (index, is_wanted) in by_name.get(name.as_str()).into_iter().flatten() {
                    found[*index].add(None, *is_wanted);
                }
            }
        }
        for (target, parts) in targets.iter().zip(found) {
            self.sampled(stream, target, parts, at);
        }
        Ok(())
    }

    /// Takes over what was read of the consumers of an object.
    fn sampled(&mut self, stream: &str, target: &Target, parts: Parts, at: f64) {
        let consumers = &self.sample.consumers;
        let figures = match parts.whole() {
            Whole::Known(figures) => Some(figures),
            Whole::Unanswered => None,
            Whole::Missing => return consumers.missed(&target.object),
        };
        let names = (self.names.get(stream), target.consumer.as_str());
        consumers.set(target.object.clone(), names, figures, at);
    }

    async fn ask_for_each(&mut self, stream: &str, targets: &[Target]) -> Result<(), ApiError> {
        for target in targets {
            let mut parts = Parts::of(target.wanted);
            for (name, is_wanted) in target.consumers() {
                self.pace.turn().await;
                let found = self.api.consumer_info::<ListedConsumer>(stream, name).await?;
                let is_own = |mark: &str| target.owner.is_named_by(mark);
                if let Some(own) = found.filter(|info| info.owner().is_some_and(is_own)) {
                    parts.add(Some(own.figures()), is_wanted);
                }
            }
            self.sampled(stream, target, parts, now());
        }
        Ok(())
    }

    /// Counts dead letters where there are others than when they were counted last.
    async fn dead_letters(
        &self,
        stream: &str,
        targets: &[Target],
        streams: &Streams,
    ) -> Result<(), ApiError> {
        let kept_in = dead_letter::stream(stream);
        let contents = streams.listed.get(kept_in.as_str()).copied();
        for target in targets {
            let consumers = &self.sample.consumers;
            let Some(contents) = contents.filter(|_| target.keeps_dead_letters) else {
                consumers.set_dead_letters(&target.object, None);
                continue;
            };
            let mut counted = known(consumers.dead_letters(&target.object), contents);
            if counted.is_none() {
                self.pace.turn().await;
                let filter = format!("{}.>", dead_letter::prefix(stream, &target.consumer));
                let count = self.api.subject_count(&kept_in, &filter).await?;
                counted = count.map(|count| Counted { count, contents });
            }
            consumers.set_dead_letters(&target.object, counted);
        }
        Ok(())
    }
}
