//! The JetStream consumers of one with order, on the partitions that its stream has now: one for each; wider ones while those are changed; and after
//! that each is divided. Reads and writes JetStream; what to do is decided in [`crate::jetstream::repartition`].

use futures::{StreamExt as _, TryStreamExt as _, stream::iter};
use jetwright_crds::{EventStream, conditions::Reason, consumer::DeliverPolicy, stream::Retention};
use kube::ResourceExt as _;

use super::{
    MAX_CONCURRENT_PARTITIONS, STREAM_RETRY, Work,
    division::{self, Becomes, Whole},
    other_partitions, physical,
    physical::{Numbers, Physical},
    validate::{validate, without_order},
    waiting_for,
};
use crate::{
    jetstream::{
        asset::{Consumer, Desired},
        info::ConsumerInfo,
        partitions,
        reconcile::Error,
        repartition::{
            division::{beginning_at, count_of, is_at_rest, placed},
            filters::numbers,
            form::Form,
            mark::Mark,
        },
    },
    outcome::{Blocked, OperationResult, Outcome, Pending, Reconciled, Recorded},
};

/// A consumer that is to be, with what JetStream has of it.
type Found = (Physical, Desired<Consumer>, Option<ConsumerInfo>);

/// What the partitions of the stream are, and were.
struct Partitioned {
    declared: u32,
    actual: u32,
    mark: Option<Mark>,
}

/// Brings all of an object's consumers to what they are to be now.
///
/// # Errors
///
/// When JetStream does not answer or refuses.
pub async fn ensure(work: &Work<'_>) -> Result<Outcome<ConsumerInfo>, Error> {
    let Some(partitioned) = partitioned(work) else {
        // Partitions and order are declared at once: the stream waits for a consumer that takes what it stores then.
        return match work.of_other_order().await? {
            Some(found) if partitions::count(&work.there.config).is_none() => {
                without_order_yet(work, None, None, &found).await
            }
            _ => Ok(Outcome::Pending(other_partitions(work.source.stream))),
        };
    };
    let Partitioned { declared, actual, ref mark } = partitioned;
    let mut form = Form::of(declared, actual, mark.as_ref());
    if let Some(found) = work.of_other_order().await? {
        return without_order_yet(work, mark.as_ref(), Some(form), &found).await;
    }
    if let Form::Dividing { from, to, at } = form {
        if let Some(pending) = divide_all(work, (from, to), at).await? {
            return Ok(Outcome::Pending(pending));
        }
        form = Form::divided(declared, actual);
    }
    match form {
        Form::Widened { count, to } => widened(work, count, to).await,
        Form::Whole { count } | Form::Dividing { to: count, .. } => whole(work, count, mark.as_ref()).await,
    }
}

/// None where the stream has no partitions, or others than it may come to by what is declared.
fn partitioned(work: &Work<'_>) -> Option<Partitioned> {
    let (config, declared) = (&work.there.config, partitions::declared(&work.source.stream.spec).ok()??);
    let actual = partitions::count(config)?;
    let is_on_its_way = declared.with_count(actual).is_ok_and(|there| partitions::has(config, &there));
    (is_on_its_way && declared.count().is_multiple_of(actual)).then(|| Partitioned {
        declared: declared.count(),
        actual,
        mark: Mark::of(config).filter(|mark| mark.to == actual),
    })
}

/// One consumer for each partition.
async fn whole(work: &Work<'_>, count: u32, mark: Option<&Mark>) -> Result<Outcome<ConsumerInfo>, Error> {
    let Some(mut all) = found(work, Numbers { count, of: count }, mark.map(|_| count)).await? else {
        return Ok(Outcome::Pending(other_partitions(work.source.stream)));
    };
    if let Some(Mark { at: Some(at), .. }) = mark
        && work.object.spec.effective_deliver_policy() != DeliverPolicy::New
    {
        let (begin, is_first) = (at + 1, all.iter().all(|(_, _, info)| info.is_none()));
        if is_first && *at >= work.there.state.first_seq.max(1) {
            return Ok(blocked(Reason::Invalid, earlier_events(*at)));
        }
        for (_, desired, _) in all.iter_mut().filter(|(_, _, info)| info.is_none()) {
            // What is made again, or was not made yet: the others are beyond.
            desired.config = beginning_at(desired.config.clone(), begin);
        }
    }
    work.ensure_all(all.into_iter().map(|(consumer, desired, _)| (consumer, desired)).collect()).await
}

fn earlier_events(at: u64) -> String {
    format!(
        "spec.deliverPolicy: the stream has events from before its partitions were changed, up to sequence {at}, whose numbers say nothing of their order. \
         Set deliverPolicy to New; or make it with ordering Unordered, and set PerKey when it is ready: it begins with order behind what it handled"
    )
}

/// Those that exist, with the numbers of the partitions to come.
async fn widened(work: &Work<'_>, count: u32, of: u32) -> Result<Outcome<ConsumerInfo>, Error> {
    let Some(all) = found(work, Numbers { count, of }, Some(count)).await? else {
        return Ok(Outcome::Pending(other_partitions(work.source.stream)));
    };
    if all.iter().all(|(_, _, info)| info.is_none()) {
        let pending = waiting_for(work.source.stream, "the partitions of its stream are being changed");
        return Ok(Outcome::Pending(Pending { requeue_after: Some(STREAM_RETRY), ..pending }));
    }
    work.ensure_all(all.into_iter().map(|(consumer, desired, _)| (consumer, desired)).collect()).await
}

/// Divides those of before; what it waits for, None once all are divided.
async fn divide_all(work: &Work<'_>, (from, to): (u32, u32), at: u64) -> Result<Option<Pending>, Error> {
    let waits_for_stream = || Ok(Some(other_partitions(work.source.stream)));
    let Some(all) = found(work, Numbers { count: to, of: to }, Some(to)).await? else {
        return waits_for_stream();
    };
    let is_missing = |(_, _, info): &Found| info.is_none();
    if (0..from).zip(&all).all(|(_, found)| is_missing(found)) {
        return Ok(None);
    }
    // Deleted before it was divided, by whomever: one of which a part is there is made again as its own part alone, behind the change.
    let is_lost = |number| {
        let mut parts = numbers(number, from, to).filter_map(|part| all.get(usize::try_from(part).ok()?));
        parts.all(is_missing)
    };
    let is_over = |number, info: &Option<ConsumerInfo>| match info {
        Some(info) => is_at_rest(&info.config, to),
        None => !is_lost(number),
    };
    if (0..from).zip(&all).all(|(number, (_, _, info))| is_over(number, info)) {
        return Ok(None);
    }
    let is_divided = |info: &ConsumerInfo| count_of(&info.config) == Some(to);
    let is_begun = (0..from).zip(&all).any(|(_, (_, _, info))| info.as_ref().is_some_and(is_divided));
    let Some(wide) = found(work, Numbers { count: from, of: to }, Some(from)).await? else {
        return waits_for_stream();
    };
    let lost = wide.iter().zip(0..).filter(|(_, number)| is_lost(*number));
    let lost: Vec<_> = lost.map(|((consumer, desired, _), _)| (consumer.clone(), desired.clone())).collect();
    if !lost.is_empty()
        && let Some(pending) = division::unfinished(&work.ensure_all(lost).await?)
    {
        return Ok(Some(pending));
    }
    let mut wholes = Vec::new();
    for ((consumer, desired, info), number) in wide.iter().zip(0..) {
        if is_over(number, info) {
            continue;
        }
        let part = |number: u32| {
            let (consumer, desired, _) = all.get(usize::try_from(number).ok()?)?;
            Some((number, consumer, desired))
        };
        let parts: Vec<_> = numbers(number, from, to).skip(1).filter_map(part).collect();
        let Some((_, own, own_desired)) = part(number) else { continue };
        let becomes = Becomes::Part(own, own_desired);
        wholes.push(Whole { wide: (consumer, desired), becomes, parts, count: to, at });
    }
    division::divide(work, &wholes, is_begun).await
}

/// The object's consumer without order is there: it goes on as it is until it can be divided, and then it goes. `form` is None before its stream
/// has partitions.
async fn without_order_yet(
    work: &Work<'_>,
    mark: Option<&Mark>,
    form: Option<Form>,
    found_name: &str,
) -> Result<Outcome<ConsumerInfo>, Error> {
    if work.source.stream.spec.effective_retention() != Retention::Limits {
        let Blocked { reason, message } = physical::of_other_order(work.object, found_name);
        return Ok(blocked(reason, message));
    }
    let object = without_order(work.object);
    let consumers = match validate(&object, work.owner, work.source, None) {
        Ok(validated) => validated.consumers,
        Err(errors) => return Ok(Outcome::Invalid(errors)),
    };
    let Some((consumer, desired)) = consumers.first().cloned() else {
        return Ok(Outcome::Pending(other_partitions(work.source.stream)));
    };
    let waits = if let Some(Form::Whole { count } | Form::Dividing { to: count, .. }) = form {
        let Some(all) = found(work, Numbers { count, of: count }, Some(count)).await? else {
            return Ok(Outcome::Pending(other_partitions(work.source.stream)));
        };
        let parts =
            (0..).zip(&all).map(|(number, (consumer, desired, _))| (number, consumer, desired)).collect();
        let at = mark.and_then(|mark| mark.at).unwrap_or_default();
        let whole = Whole { wide: (&consumer, &desired), becomes: Becomes::Nothing, parts, count, at };
        division::divide(work, &[whole], false).await?
    } else {
        Some(waits_for_partitions(work.source.stream))
    };
    let Some(waits) = waits else {
        // What is left is as if it had been made with order.
        return Box::pin(ensure(work)).await;
    };
    let mut outcome = work.ensure_all(vec![(consumer, desired)]).await?;
    if let Outcome::Reconciled(reconciled) = &mut outcome {
        reconciled.contested.get_or_insert(waits);
    }
    Ok(outcome)
}

/// A consumer without order is to get it, and goes on without until its stream has partitions.
fn waits_for_partitions(stream: &EventStream) -> Pending {
    let message = format!(
        "spec.ordering: it gets order when EventStream {} has its partitions (see the condition PartitionsChanging of that), and goes on without order \
         until then",
        stream.name_any()
    );
    // The stream's condition wakes it when they are there; where that is missed, it asks.
    let requeue_after = Some(STREAM_RETRY);
    Pending { reason: Reason::ChangingPartitions, message, stalled: false, requeue_after }
}

/// The consumers that are to be, and what JetStream has of each; None where they cannot be. On a stream whose partitions were changed each says of how many it delivers one, and so
/// does each that is a part of another.
async fn found(work: &Work<'_>, shared: Numbers, marked: Option<u32>) -> Result<Option<Vec<Found>>, Error> {
    // It is valid with the partitions that are declared, of which there are at least as many.
    let Ok(validated) = validate(work.object, work.owner, work.source, Some(shared)) else { return Ok(None) };
    let found = iter(validated.consumers).map(async |(consumer, mut desired): (_, Desired<Consumer>)| {
        let failed = |source| Error::reading::<Consumer>(&desired.key, source);
        let info = work.connection.cache.lock::<Consumer>(&desired.key).await.map_err(failed)?.present();
        let actual = info.as_ref().map(|info| &info.config);
        let is_part = actual.and_then(count_of).map(|_| shared.count);
        if let Some(count) = marked.or(is_part) {
            desired.config = placed(desired.config, count, actual);
        }
        Ok((consumer, desired, info))
    });
    found.buffered(MAX_CONCURRENT_PARTITIONS).try_collect().await.map(Some)
}

fn blocked(reason: Reason, message: String) -> Outcome<ConsumerInfo> {
    let result = OperationResult::Blocked(Blocked { reason, message });
    Outcome::Reconciled(Reconciled::new(result, None, &Recorded::default()))
}
