//! In: the rates of one consumer, how they are spread over its partitions, and the capacity of a pod. Out: how many pods it asks for. Pure.

use super::{
    capacity::Capacity,
    partition_loads::PartitionLoads,
    rates::Rates,
    spec::{Scaling, Useful, as_f64, ceil},
};

/// Load that fewer pods must bear before pods are removed. Without this margin, a load between two numbers adds and removes a pod in turn.
const MARGIN: f64 = 1.1;

/// Times that a handler takes, in which what pods work at is to be settled before pods are removed, where that is longer than `targetDrainTime`.
const MIN_HANDLINGS: f64 = 4.0;

/// Pods that a consumer asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// By the formula; and one more than there are, where one has partitions that are too much for it together.
    pub pods: u32,
    /// To go up to: no more than are of use now.
    pub up: u32,
    /// To go down to.
    pub down: u32,
    /// Whether it works off a lag, later than it should.
    pub is_draining: bool,
    /// Whether pods work at as many messages as may be unacknowledged, and no other could take a partition.
    pub is_limited: bool,
}

/// What is there, beside the figures.
#[derive(Clone, Copy, Debug)]
pub struct Present<'a> {
    pub scaling: &'a Scaling,
    /// Of the workload.
    pub useful: Option<Useful>,
    /// The desired number of pods before this decision.
    pub replicas: u32,
}

impl Present<'_> {
    /// The smallest number of pods that is of use and at least so many.
    #[must_use]
    pub fn round_up(&self, pods: u32) -> u32 {
        self.useful.map_or(pods, |useful| useful.round_up(pods))
    }
}

/// What is known of a consumer.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    pub rates: &'a Rates,
    pub capacity: &'a Capacity,
    /// With order per key.
    pub loads: Option<&'a PartitionLoads>,
}

/// The pods that a consumer asks for.
#[must_use]
pub fn wish(known: Known<'_>, present: Present<'_>) -> Wish {
    let Known { rates, capacity, loads } = known;
    let Present { scaling, replicas, .. } = present;
    if rates.is_idle {
        return Wish::default();
    }
    let (sample, each) = (rates.sample, capacity.learnt());
    let unbegun = as_f64(sample.unbegun());
    let load = scaling.load(rates.arrivals, unbegun, each);
    let target = scaling.target_drain_time.as_secs_f64();
    // Pods that work at something are no pods too many, unless it takes them so long that they always do.
    let in_hand = as_f64(sample.in_hand());
    let handling = each.map_or(0.0, |each| in_hand / (each * f64::from(replicas.max(1))));
    let in_hand = in_hand * target / target.max(MIN_HANDLINGS * handling);
    let borne = scaling.load(rates.arrivals, unbegun + in_hand, each);
    // A pod for each message that is there, or comes while they are worked off, is the most.
    let most = ceil(as_f64(sample.lag()) + rates.arrivals * target).max(1);
    let of_partitions = loads.zip(each);
    let is_overloaded =
        of_partitions.is_some_and(|(loads, each)| loads.is_overloaded(scaling, rates.arrivals, each));
    let one_more = if is_overloaded { replicas.saturating_add(1) } else { 0 };
    let pods = ceil(load).max(one_more).clamp(1, most);
    // A pod that gets partitions of others gets what those hold.
    let is_limited = sample.is_limiting() && loads.is_none_or(|loads| loads.takers(replicas) <= replicas);
    let bearable = of_partitions.map(|(loads, each)| loads.min_pods(scaling, rates.arrivals, each));
    let rounded = present.round_up(pods);
    let up = match () {
        // What waits needs one, whoever had it before.
        () if replicas == 0 => rounded.min(helpful(known, present)).max(1),
        () if is_limited || capacity.has_no_gain() => replicas.min(rounded),
        () => rounded.min(helpful(known, present)),
    };
    let is_late = rates.drain.is_some_and(|drain| as_f64(sample.lag()) / drain > target);
    Wish {
        pods,
        up,
        down: present.round_up(ceil(borne * MARGIN).clamp(1, most)).max(bearable.unwrap_or(0)),
        is_draining: rates.is_partly_saturated() && is_late,
        is_limited,
    }
}

/// The most pods that are of use: the present ones and one for each message that waits; or as many as the lasting arrivals take. More pods
/// do not settle faster what pods already work at, and of partitions only what another pod can take.
fn helpful(
    Known { rates, capacity, loads }: Known<'_>,
    Present { scaling, replicas, .. }: Present<'_>,
) -> u32 {
    let waiting = u32::try_from(rates.sample.waiting()).unwrap_or(u32::MAX);
    let lasting = |each| ceil(scaling.load(rates.lasting_arrivals, 0.0, Some(each)));
    let most = replicas.saturating_add(waiting).max(capacity.learnt().map_or(0, lasting));
    loads.map_or(most, |loads| most.min(loads.takers(replicas)))
}
