//! The autoscalers of all workloads that have one, while this process leads. In: what the sampler saw. Out: what each decided last, for the
//! pipeline of its object; and the names of the objects whose decision changed.

use std::{
    collections::{HashMap, hash_map::Entry},
    time::Duration,
};

use jetwright_crds::{
    EventConsumer,
    consumer::{Autoscaling, AutoscalingStatus},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    autoscaler::{Autoscaler, Decision, Look},
    figures::Reading,
    published::{Decided, Published, Said},
    spec::{Scaling, Useful},
    status_figures::{continued, figures},
};
use crate::{
    changes::Changes,
    kubernetes::{
        status,
        stores::{Name, name_of},
    },
};

/// What the sampler saw of a workload.
pub struct Seen<'a> {
    pub object: &'a EventConsumer,
    pub autoscaling: &'a Autoscaling,
    /// Pods that its Deployment is to have, and those that are ready.
    pub replicas: u32,
    pub ready: u32,
    pub readings: &'a [(String, Reading)],
    /// Which numbers of pods are of use, where all of its consumers have partitions.
    pub useful: Option<Useful>,
}

/// One workload.
struct Workload {
    uid: String,
    declared: Autoscaling,
    autoscaler: Autoscaler,
    decision: Decision,
    published: Published,
    scaled_at: Option<Time>,
    /// Why the last step was made, until an event reported it.
    unreported: Option<String>,
    /// With mode Observe: when the object was last reconciled because of another number of pods.
    told_at: Option<Duration>,
}

/// What was decided for a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub said: Option<Said>,
    pub status: AutoscalingStatus,
}

/// Figures of a workload, as metrics have them.
pub struct Exported {
    pub name: Name,
    pub decision: Decision,
    pub bounds: (u32, u32),
    pub consumers: Vec<ExportedConsumer>,
}

/// Figures of a consumer in a workload, in messages a second.
pub struct ExportedConsumer {
    pub name: String,
    /// What arrives, and what is settled.
    pub rates: Option<(f64, f64)>,
    /// What one pod can settle.
    pub capacity: Option<f64>,
}

/// The autoscalers, by the EventConsumer that declares the workload.
pub struct Autoscalers {
    begun: Instant,
    workloads: Mutex<HashMap<Name, Workload>>,
    /// Objects whose decision changed.
    pub changes: Changes,
}

impl Default for Autoscalers {
    fn default() -> Self {
        Self { begun: Instant::now(), workloads: Mutex::default(), changes: Changes::default() }
    }
}

impl Autoscalers {
    /// The pods that a workload is to have: with active autoscaling what was decided last; before the first decision of this process, and of the
    /// present mode, what its Deployment has, so that neither a restart nor a change of the mode scales anything.
    #[must_use]
    pub fn replicas(&self, object: &EventConsumer, deployed: Option<i32>) -> i32 {
        let Some(workload) = &object.spec.workload else { return 0 };
        let Some(autoscaling) = workload.autoscaling.as_ref().filter(|autoscaling| autoscaling.is_active())
        else {
            return workload.replicas;
        };
        let decided = |known: &Workload| known.declared.is_active().then(|| known.autoscaler.replicas());
        let replicas = self
            .with(object, decided)
            .flatten()
            .unwrap_or_else(|| count(deployed.unwrap_or(workload.replicas)));
        i32::try_from(scaling(autoscaling).bound(replicas)).unwrap_or(i32::MAX)
    }

    /// What was decided last, as status and condition say it; None before the first decision of this process.
    #[must_use]
    pub fn view(&self, object: &EventConsumer) -> Option<View> {
        self.with(object, |known| View {
            said: known.published.said.clone(),
            status: AutoscalingStatus {
                desired_replicas: i32::try_from(known.decision.replicas).unwrap_or(i32::MAX),
                last_scale_time: known.scaled_at.clone(),
                consumers: figures(&known.autoscaler),
            },
        })
    }

    /// Why the pods are scaled, once for each step.
    pub fn take_step(&self, object: &EventConsumer) -> Option<String> {
        let mut workloads = self.workloads.lock();
        workloads.get_mut(&name_of(object))?.unreported.take()
    }

    fn with<R>(&self, object: &EventConsumer, read: impl FnOnce(&Workload) -> R) -> Option<R> {
        let workloads = self.workloads.lock();
        let known = workloads.get(&name_of(object))?;
        (Some(known.uid.as_str()) == object.metadata.uid.as_deref()).then(|| read(known))
    }

    /// Time since this process began to sample.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Takes over what was seen of a workload, decides, and triggers its object where the pods or the condition change. With mode Observe,
    /// another number of pods triggers it at most once in `interval`.
    pub fn look(&self, seen: &Seen<'_>, interval: Duration) {
        let (name, at) = (name_of(seen.object), self.elapsed());
        let mut workloads = self.workloads.lock();
        let uid = seen.object.uid().unwrap_or_default();
        let workload = match workloads.entry(name.clone()) {
            Entry::Occupied(known) if known.get().uid == uid => known.into_mut(),
            entry => entry.insert_entry(Workload::new(uid, seen)).into_mut(),
        };
        if workload.look(seen, at, interval) {
            self.changes.add(name);
        }
    }

    /// Forgets a workload that declares no autoscaling: what was decided is not what there is when it is declared again.
    pub fn forget(&self, name: &Name) {
        self.workloads.lock().remove(name);
    }

    /// Forgets the workloads that have no autoscaling any more.
    pub fn retain(&self, is_there: impl Fn(&Name) -> bool) {
        self.workloads.lock().retain(|name, _| is_there(name));
    }

    /// Figures of all workloads, in the order of their names.
    #[must_use]
    pub fn exported(&self) -> Vec<Exported> {
        let workloads = self.workloads.lock();
        let mut all: Vec<_> = workloads.iter().map(|(name, workload)| workload.exported(name)).collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }
}

impl Workload {
    /// What was learnt by an earlier process is in the status.
    fn new(uid: String, seen: &Seen<'_>) -> Self {
        let mut autoscaler = Autoscaler::new(seen.replicas);
        let status =
            seen.object.status.as_ref().and_then(|status| status.autoscaling.clone()).unwrap_or_default();
        let known = status.consumers.iter().map(|figures| (figures.name.clone(), continued(figures)));
        autoscaler.consumers.extend(known);
        let decision = Decision::steady(seen.replicas);
        Self {
            uid,
            declared: seen.autoscaling.clone(),
            autoscaler,
            decision,
            published: Published::continued(seen.object.conditions()),
            scaled_at: status.last_scale_time,
            unreported: None,
            told_at: None,
        }
    }

    /// Decides; whether the object has to be reconciled.
    fn look(&mut self, seen: &Seen<'_>, at: Duration, interval: Duration) -> bool {
        // Others decided until now.
        if !self.declared.is_active() || !seen.autoscaling.is_active() {
            self.autoscaler.follow(at, seen.replicas);
        }
        if self.declared != *seen.autoscaling {
            self.declared = seen.autoscaling.clone();
            self.autoscaler.redeclared();
        }
        let observes = !self.declared.is_active();
        let scaling = scaling(&self.declared);
        let (before, last) = (self.autoscaler.replicas(), self.decision.replicas);
        let look = Look {
            at,
            ready: seen.ready,
            readings: seen.readings,
            scaling: &scaling,
            useful: seen.useful,
            observes,
        };
        self.decision = self.autoscaler.look(look);
        let figures = figures(&self.autoscaler);
        let decided = Decided {
            at,
            before,
            decision: self.decision,
            readings: seen.readings,
            figures: &figures,
            max: scaling.max,
            useful: seen.useful,
            observes,
        };
        let is_news = self.published.add(decided);
        let differs = self.decision.replicas != if observes { last } else { before };
        if differs && !observes {
            self.scaled_at = Some(status::now());
            self.unreported = self.published.said.as_ref().map(|said| said.message.clone());
        }
        let is_due = self.told_at.is_none_or(|told| at >= told + interval);
        if differs && observes && is_due {
            self.told_at = Some(at);
        }
        is_news || (differs && (!observes || is_due))
    }

    fn exported(&self, name: &Name) -> Exported {
        let scaling = scaling(&self.declared);
        let consumers = self.autoscaler.consumers.iter().map(|(name, consumer)| ExportedConsumer {
            name: name.clone(),
            rates: consumer.rates.map(|rates| (rates.arrivals, rates.settled)),
            capacity: consumer.capacity.learnt(),
        });
        Exported {
            name: name.clone(),
            decision: self.decision,
            bounds: (scaling.min, scaling.max),
            consumers: consumers.collect(),
        }
    }
}

/// What an object declares, as the decision takes it.
fn scaling(autoscaling: &Autoscaling) -> Scaling {
    Scaling {
        min: count(autoscaling.effective_min_replicas()),
        max: count(autoscaling.max_replicas),
        target_drain_time: autoscaling.effective_target_drain_time().into(),
        lag_per_replica: autoscaling.effective_lag_per_replica().into(),
        scale_down_after: autoscaling.effective_scale_down_after().into(),
    }
}

/// A number of pods, which is never negative.
pub fn count(replicas: i32) -> u32 {
    u32::try_from(replicas).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(autoscaling: &str) -> EventConsumer {
        let spec = format!(
            "{{streamRef: {{name: orders}}, workload: {{replicas: 1, {autoscaling}template: {{spec: {{containers: []}}}}}}}}"
        );
        let mut object = EventConsumer::new("fulfilment", serde_saphyr::from_str(&spec).unwrap());
        object.metadata.namespace = Some("shop".into());
        object.metadata.uid = Some("1".into());
        object
    }

    #[test]
    fn what_was_decided_counts_until_it_is_forgotten_whoever_asks_for_it() {
        let (autoscalers, object) = (Autoscalers::default(), object("autoscaling: {maxReplicas: 9}, "));
        let autoscaling = object.spec.workload.as_ref().unwrap().autoscaling.as_ref().unwrap();
        let seen = Seen { object: &object, autoscaling, replicas: 4, ready: 4, readings: &[], useful: None };
        autoscalers.look(&seen, Duration::ZERO);
        assert_eq!(autoscalers.replicas(&object, Some(7)), 4);
        assert_eq!(autoscalers.replicas(&self::object(""), Some(7)), 1);
        assert_eq!(autoscalers.replicas(&object, Some(7)), 4);
        autoscalers.forget(&name_of(&object));
        assert_eq!(autoscalers.replicas(&object, Some(7)), 7, "as many as there are");
    }
}
