//! In: a pod as Kubernetes has it. Out: what of it is kept, above all why its containers do not start. Pure.

use jetwright_crds::conditions::Reason;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, Event, Pod, PodStatus,
};
use kube::ResourceExt;

/// Label with which a Deployment's controller tells the pods of one template from those of another.
const REVISION_LABEL: &str = "pod-template-hash";
/// Most characters of what others said that a message repeats.
const MAX_WORDS_LENGTH: usize = 400;
/// Runs that last longer the kubelet counts as no crash loop, and starts a container again at once (its back-off's reset).
const SHORT_RUN_SECONDS: i64 = 600;

/// What is kept of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodState {
    /// Which pod of the name it is.
    pub uid: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// Tells the pods of one template from those of another.
    pub revision: String,
    /// What it is doing.
    pub condition: Condition,
}

/// What a pod is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It runs, or is on its way.
    Healthy,
    /// Its node prepares it: volumes, network. Only events say what goes wrong with that.
    Initializing,
    /// It does not come up.
    Failing(PodFailure),
}

/// Why a pod does not come up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFailure {
    /// In one word.
    pub reason: Reason,
    /// In words, with what to do.
    pub message: String,
}

impl PodFailure {
    fn new(reason: Reason, message: String) -> Self {
        Self { reason, message }
    }
}

/// What is kept of a pod; None of one that ends or has ended, which others take the place of.
pub fn observe(pod: &Pod) -> Option<PodState> {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    if pod.metadata.deletion_timestamp.is_some() || matches!(phase, Some("Failed" | "Succeeded")) {
        return None;
    }
    Some(PodState {
        uid: pod.uid()?,
        created: pod.creation_timestamp().map(|time| time.0.as_second()).unwrap_or_default(),
        revision: revision(pod),
        condition: status.map_or(Condition::Healthy, |status| condition(&pod.name_any(), status)),
    })
}

/// Tells the pods of one template from those of another.
#[must_use]
pub fn revision(pod: &Pod) -> String {
    pod.labels().get(REVISION_LABEL).cloned().unwrap_or_default()
}

fn condition(pod: &str, status: &PodStatus) -> Condition {
    let init = status.init_container_statuses.iter().flatten();
    let mut containers = init.chain(status.container_statuses.iter().flatten());
    if let Some(trouble) = containers.find_map(|container| of_container(pod, container)) {
        return Condition::Failing(trouble);
    }
    let of_type = |type_: &str| status.conditions.iter().flatten().find(|condition| condition.type_ == type_);
    match of_type("PodScheduled") {
        Some(scheduled) if scheduled.status == "True" => {}
        Some(scheduled) if scheduled.reason.as_deref() == Some("Unschedulable") => {
            let words = shortened(scheduled.message.as_deref().unwrap_or_default());
            let message = format!(
                "pod {pod} fits on no node: {words} Lower what spec.workload.template requests or demands of a node, or add nodes"
            );
            return Condition::Failing(PodFailure::new(Reason::Unschedulable, message));
        }
        _ => return Condition::Healthy,
    }
    let set_up = of_type("PodReadyToStartContainers").map(|condition| condition.status == "True");
    let begun = |container: &ContainerStatus| {
        let state = container.state.as_ref();
        state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    };
    let mut all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    // Where the kubelet does not tell, a container that ran is the proof.
    if set_up.unwrap_or_else(|| all.any(begun)) { Condition::Healthy } else { Condition::Initializing }
}

fn of_container(pod: &str, container: &ContainerStatus) -> Option<PodFailure> {
    let place = format!("pod {pod}, container {}", container.name);
    let state = container.state.as_ref()?;
    let waiting = state.waiting.as_ref();
    match waiting.and_then(|waiting| waiting.reason.as_deref()) {
        Some(
            "ErrImagePull"
            | "ImagePullBackOff"
            | "InvalidImageName"
            | "ErrImageNeverPull"
            | "ImageInspectError"
            | "RegistryUnavailable"
            | "SignatureValidationFailed",
        ) => {
            let (image, words) = (&container.image, pull_words(waiting?));
            let message = format!(
                "{place}: image {image} cannot be pulled: {words}. Correct it in spec.workload.template, or check the registry and \
                 imagePullSecrets"
            );
            Some(PodFailure::new(Reason::ImagePull, message))
        }
        Some(reason @ ("CreateContainerConfigError" | "CreateContainerError" | "RunContainerError")) => {
            let words = words(waiting?.message.as_deref(), reason);
            let message = format!(
                "{place} cannot be started: {words}. Make what is missing, or correct spec.workload.template"
            );
            Some(PodFailure::new(Reason::ContainerConfig, message))
        }
        reason => {
            let last = last_run(container, state)?;
            let looping = reason == Some("CrashLoopBackOff") || keeps_ending(container, last);
            looping.then(|| PodFailure::new(Reason::CrashLoop, crash_words(&place, pod, container, last)))
        }
    }
}

/// The kubelet's words on a failed pull, which it begins differently while it waits for the next try.
fn pull_words(waiting: &ContainerStateWaiting) -> String {
    let text = waiting.message.as_deref().unwrap_or_default();
    let said = text.split_once("ErrImagePull: ").map_or(text, |(_, said)| said);
    words(Some(said), waiting.reason.as_deref().unwrap_or_default())
}

/// The run of a container that ended last.
fn last_run<'a>(
    container: &'a ContainerStatus,
    state: &'a ContainerState,
) -> Option<&'a ContainerStateTerminated> {
    state.terminated.as_ref().or_else(|| container.last_state.as_ref()?.terminated.as_ref())
}

/// Whether a container that is up again for the moment is in a crash loop all the same.
fn keeps_ending(container: &ContainerStatus, last: &ContainerStateTerminated) -> bool {
    let lasted = last.started_at.as_ref().zip(last.finished_at.as_ref());
    let lasted = lasted.map(|(from, to)| to.0.as_second() - from.0.as_second());
    let short = lasted.is_none_or(|seconds| seconds < SHORT_RUN_SECONDS);
    !container.ready && container.restart_count >= 2 && short
}

fn crash_words(
    place: &str,
    pod: &str,
    container: &ContainerStatus,
    last: &ContainerStateTerminated,
) -> String {
    let reason = last.reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    // The end of a log, where the program left no message.
    let said = last.message.as_deref().and_then(|text| text.lines().rfind(|line| !line.trim().is_empty()));
    let said = said.map(|line| format!(": {}", shortened(line.trim()))).unwrap_or_default();
    format!(
        "{place} ends again and again, last with exit code {}{reason}{said}. See kubectl logs {pod} -c {} --previous",
        last.exit_code, container.name
    )
}

fn words(message: Option<&str>, reason: &str) -> String {
    let text = message.map(str::trim).filter(|text| !text.is_empty()).unwrap_or(reason);
    shortened(text).trim_end_matches('.').to_owned()
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_WORDS_LENGTH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// What the events of a pod that its node prepares say is wrong with it; the newest counts.
pub fn setup_failure(pod: &str, events: &[Event]) -> Option<PodFailure> {
    let of_setup = events.iter().filter_map(|event| Some((event, setup_reason(event.reason.as_deref()?)?)));
    let (event, reason) = of_setup.max_by_key(|(event, _)| (names_cause(event), reported_at(event)))?;
    let words = words(event.message.as_deref(), event.reason.as_deref().unwrap_or_default());
    let message = match reason {
        Reason::VolumeMount => format!(
            "pod {pod}: a volume cannot be mounted: {words}. Make what is missing, or correct spec.workload.credentials and \
             spec.workload.template"
        ),
        _ => format!(
            "pod {pod} cannot be set up on its node: {words}. Check the node and the cluster's network"
        ),
    };
    Some(PodFailure::new(reason, message))
}

fn setup_reason(event: &str) -> Option<Reason> {
    match event {
        "FailedMount" | "FailedAttachVolume" | "FailedMapVolume" => Some(Reason::VolumeMount),
        "FailedCreatePodSandBox" | "NetworkNotReady" => Some(Reason::PodSandbox),
        _ => None,
    }
}

/// Beside what cannot be mounted, the kubelet tells after two minutes that it has waited for it.
fn names_cause(event: &Event) -> bool {
    !event.message.as_deref().is_some_and(|text| text.starts_with("Unable to attach or mount volumes"))
}

/// When an event was reported last, in microseconds since 1970.
fn reported_at(event: &Event) -> i64 {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref());
    let seconds = event.last_timestamp.as_ref().map(|time| time.0.as_microsecond());
    let micro = series.or(event.event_time.as_ref()).map(|time| time.0.as_microsecond());
    seconds.max(micro).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A pod with this status, as YAML.
    fn pod(status: &str) -> Pod {
        let status: Value = serde_saphyr::from_str(status).unwrap();
        let metadata = json!({
            "name": "p1", "uid": "u1", "creationTimestamp": "1970-01-01T00:00:07Z", "labels": {"pod-template-hash": "r1"},
        });
        serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap()
    }

    fn seen(status: &str) -> Condition {
        observe(&pod(status)).unwrap().condition
    }

    const SCHEDULED: &str = "{type: PodScheduled, status: 'True'}";
    const SET_UP: &str = "{type: PodReadyToStartContainers, status: 'True'}";

    fn of_app(container: &str) -> Condition {
        seen(&format!(
            "{{conditions: [{SCHEDULED}, {SET_UP}], containerStatuses: [{{name: app, image: shop/order:1, imageID: '', {container}}}]}}"
        ))
    }

    /// Reason and message of the trouble of a pod whose one container is so.
    fn trouble(container: &str) -> (Reason, String) {
        match of_app(container) {
            Condition::Failing(PodFailure { reason, message }) => (reason, message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn of_a_pod_little_is_kept_and_of_one_that_ends_nothing() {
        let expected =
            PodState { uid: "u1".into(), created: 7, revision: "r1".into(), condition: Condition::Healthy };
        assert_eq!(observe(&pod("{}")), Some(expected));
        assert_eq!(observe(&pod("{phase: Failed}")), None);
        let mut ending = pod("{}");
        ending.metadata.deletion_timestamp = ending.metadata.creation_timestamp.clone();
        assert_eq!(observe(&ending), None);
    }

    #[test]
    fn an_image_that_cannot_be_pulled_is_named_with_the_kubelets_words() {
        let expected = "pod p1, container app: image shop/order:1 cannot be pulled: not found. Correct it in \
                        spec.workload.template, or check the registry and imagePullSecrets";
        // While the kubelet waits for its next try it says the same in another way.
        for (reason, message) in [
            ("ErrImagePull", "not found"),
            ("ImagePullBackOff", "Back-off pulling image \"shop/order:1\": ErrImagePull: not found"),
        ] {
            let told = trouble(&format!(
                "ready: false, restartCount: 0, state: {{waiting: {{reason: {reason}, message: '{message}'}}}}"
            ));
            assert_eq!(told, (Reason::ImagePull, expected.to_owned()));
        }
        let wrong = "ready: false, restartCount: 0, state: {waiting: {reason: InvalidImageName}}";
        assert!(trouble(wrong).1.contains("cannot be pulled: InvalidImageName"));
    }

    #[test]
    fn a_missing_secret_of_a_variable_is_told() {
        let (reason, message) = trouble(
            "ready: false, restartCount: 0,
             state: {waiting: {reason: CreateContainerConfigError, message: 'secret \"payments\" not found'}}",
        );
        let expected = "pod p1, container app cannot be started: secret \"payments\" not found. Make what is missing, or correct \
                        spec.workload.template";
        assert_eq!((reason, message.as_str()), (Reason::ContainerConfig, expected));
    }

    const LAST: &str =
        "lastState: {terminated: {exitCode: 1, reason: Error, message: \"starting\\nNATS_URL: not set\\n\",
        startedAt: '2026-01-01T00:00:00Z', finishedAt: '2026-01-01T00:00:03Z'}}";

    #[test]
    fn a_crash_loop_is_told_with_the_exit_code_and_the_last_line() {
        let waiting = "state: {waiting: {reason: CrashLoopBackOff, message: back-off 10s}}";
        let (reason, message) = trouble(&format!("ready: false, restartCount: 1, {LAST}, {waiting}"));
        let expected = "pod p1, container app ends again and again, last with exit code 1 (Error): NATS_URL: not set. See kubectl \
                        logs p1 -c app --previous";
        assert_eq!((reason, message.as_str()), (Reason::CrashLoop, expected));
    }

    #[test]
    fn a_crash_loop_stays_one_while_the_container_is_up_for_a_moment() {
        let up = "state: {running: {startedAt: '2026-01-01T00:00:10Z'}}";
        let looping = trouble(&format!("ready: false, restartCount: 2, {LAST}, {up}"));
        let waiting = "state: {waiting: {reason: CrashLoopBackOff}}";
        assert_eq!(looping, trouble(&format!("ready: false, restartCount: 2, {LAST}, {waiting}")));
        assert_eq!(of_app(&format!("ready: true, restartCount: 2, {LAST}, {up}")), Condition::Healthy);
        // One that ended once, or after a long time, just starts again.
        assert_eq!(of_app(&format!("ready: false, restartCount: 1, {LAST}, {up}")), Condition::Healthy);
        let long = LAST.replace("00:00:03Z", "00:10:00Z");
        assert_eq!(of_app(&format!("ready: false, restartCount: 7, {long}, {up}")), Condition::Healthy);
    }

    #[test]
    fn a_container_that_prepares_the_program_is_looked_at_first() {
        let waiting = "ready: false, restartCount: 0, image: i, imageID: ''";
        let state = seen(&format!(
            "{{conditions: [{SCHEDULED}, {SET_UP}],
              initContainerStatuses: [{{name: init, {waiting}, state: {{waiting: {{reason: ErrImagePull}}}}}}],
              containerStatuses: [{{name: app, {waiting}, state: {{waiting: {{reason: PodInitializing}}}}}}]}}"
        ));
        let Condition::Failing(trouble) = state else { panic!("{state:?}") };
        assert!(trouble.message.starts_with("pod p1, container init: image i cannot"), "{}", trouble.message);
    }

    #[test]
    fn a_pod_without_a_node_is_told_in_the_schedulers_words() {
        let state = seen(
            "{conditions: [{type: PodScheduled, status: 'False', reason: Unschedulable, message: '0/3 nodes: Insufficient cpu.'}]}",
        );
        let message = "pod p1 fits on no node: 0/3 nodes: Insufficient cpu. Lower what spec.workload.template requests or demands of a \
                       node, or add nodes";
        assert_eq!(state, Condition::Failing(PodFailure::new(Reason::Unschedulable, message.to_owned())));
        assert_eq!(
            seen("{conditions: [{type: PodScheduled, status: 'False', reason: SchedulingGated}]}"),
            Condition::Healthy
        );
    }

    #[test]
    fn a_node_prepares_a_pod_until_it_says_that_it_is_set_up() {
        let creating = "containerStatuses: [{name: app, image: i, imageID: '', ready: false, restartCount: 0,
            state: {waiting: {reason: ContainerCreating}}}]";
        let with = |conditions: &str| seen(&format!("{{conditions: [{conditions}], {creating}}}"));
        assert_eq!(with(SCHEDULED), Condition::Initializing);
        assert_eq!(
            with(&format!("{SCHEDULED}, {{type: PodReadyToStartContainers, status: 'False'}}")),
            Condition::Initializing
        );
        // Now its image is pulled, which may take long.
        assert_eq!(with(&format!("{SCHEDULED}, {SET_UP}")), Condition::Healthy);
        let running = "containerStatuses: [{name: app, image: i, imageID: '', ready: false, restartCount: 0,
            state: {running: {startedAt: '2026-01-01T00:00:10Z'}}}]";
        assert_eq!(seen(&format!("{{conditions: [{SCHEDULED}], {running}}}")), Condition::Healthy);
    }

    fn event(reason: &str, message: &str, second: u32) -> Event {
        let last = format!("2026-01-01T00:00:{second:02}Z");
        let event = json!({
            "metadata": {}, "involvedObject": {}, "reason": reason, "message": message, "lastTimestamp": last, "type": "Warning",
        });
        serde_json::from_value(event).unwrap()
    }

    #[test]
    fn a_secret_that_cannot_be_mounted_is_told_in_the_newest_words_that_name_it() {
        let missing =
            "MountVolume.SetUp failed for volume \"jetwright-credentials\" : secret \"shop-nats\" not found";
        let waited =
            "Unable to attach or mount volumes: unmounted volumes=[jetwright-credentials]: timed out";
        let events = [
            event("FailedScheduling", "0/1 nodes", 1),
            event("FailedMount", "MountVolume.SetUp failed: something older", 2),
            event("FailedMount", missing, 3),
            event("FailedMount", waited, 4),
        ];
        let told = format!(
            "pod p1: a volume cannot be mounted: {missing}. Make what is missing, or correct spec.workload.credentials and \
             spec.workload.template"
        );
        assert_eq!(setup_failure("p1", &events), Some(PodFailure::new(Reason::VolumeMount, told)));
        assert_eq!(setup_failure("p1", &events[..1]), None);
        let sandbox = setup_failure("p1", &[event("FailedCreatePodSandBox", "no network", 1)]).unwrap();
        assert_eq!(sandbox.reason, Reason::PodSandbox);
    }

    #[test]
    fn long_words_are_shortened() {
        assert_eq!(shortened("kurz"), "kurz");
        let long = shortened(&"ä".repeat(1000));
        assert_eq!((long.chars().count(), long.ends_with('…')), (MAX_WORDS_LENGTH + 1, true));
    }
}
