//! In: a pod as Kubernetes has it. Out: what of it is kept, above all why its containers do not start. Pure.

use jetwright_crds::conditions::Reason;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, Event, Pod, PodStatus,
};
use kube::ResourceExt;

/// Label with which a Deployment's controller tells the pods of one template from those of another.
const REVISION_LABEL: &str = "pod-template-hash";
/// Most characters of what others said that a message repeats.
const LONGEST_WORDS: usize = 400;
/// Runs that last longer the kubelet counts as no crash loop, and starts a container again at once (its back-off's reset).
const SHORT_RUN_SECONDS: i64 = 600;

/// What is kept of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Which pod of the name it is.
    pub uid: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// Tells the pods of one template from those of another.
    pub revision: String,
    /// What it is doing.
    pub state: State,
}

/// What a pod is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It runs, or is on its way.
    Well,
    /// Its node prepares it: volumes, network. What goes wrong with that is told in events alone.
    SettingUp,
    /// It does not come up.
    Troubled(Trouble),
}

/// Why a pod does not come up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// In one word.
    pub reason: Reason,
    /// In words, with what to do.
    pub message: String,
}

impl Trouble {
    fn new(reason: Reason, message: String) -> Self {
        Self { reason, message }
    }
}

/// What is kept of a pod; None of one that ends or has ended, which others take the place of.
pub fn sight(pod: &Pod) -> Option<Sighting> {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    if pod.metadata.deletion_timestamp.is_some() || matches!(phase, Some("Failed" | "Succeeded")) {
        return None;
    }
    Some(Sighting {
        uid: pod.uid()?,
        created: pod.creation_timestamp().map(|time| time.0.as_second()).unwrap_or_default(),
        revision: pod.labels().get(REVISION_LABEL).cloned().unwrap_or_default(),
        state: status.map_or(State::Well, |status| state(&pod.name_any(), status)),
    })
}

fn state(pod: &str, status: &PodStatus) -> State {
    let init = status.init_container_statuses.iter().flatten();
    let mut containers = init.chain(status.container_statuses.iter().flatten());
    if let Some(trouble) = containers.find_map(|container| of_container(pod, container)) {
        return State::Troubled(trouble);
    }
    let condition =
        |type_: &str| status.conditions.iter().flatten().find(|condition| condition.type_ == type_);
    match condition("PodScheduled") {
        Some(scheduled) if scheduled.status == "True" => {}
        Some(scheduled) if scheduled.reason.as_deref() == Some("Unschedulable") => {
            let words = shortened(scheduled.message.as_deref().unwrap_or_default());
            let message = format!(
                "pod {pod} fits on no node: {words} Lower what spec.workload.template requests or demands of a node, or add nodes"
            );
            return State::Troubled(Trouble::new(Reason::Unschedulable, message));
        }
        _ => return State::Well,
    }
    let set_up = condition("PodReadyToStartContainers").map(|condition| condition.status == "True");
    let begun = |container: &ContainerStatus| {
        let state = container.state.as_ref();
        state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    };
    let mut all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    // Where the kubelet does not tell, a container that ran is the proof.
    if set_up.unwrap_or_else(|| all.any(begun)) { State::Well } else { State::SettingUp }
}

fn of_container(pod: &str, container: &ContainerStatus) -> Option<Trouble> {
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
                "{place}: image {image} cannot be pulled: {words}. Correct it in spec.workload.template, or see to the registry and to \
                 imagePullSecrets"
            );
            Some(Trouble::new(Reason::ImagePull, message))
        }
        Some(reason @ ("CreateContainerConfigError" | "CreateContainerError" | "RunContainerError")) => {
            let words = words(waiting?.message.as_deref(), reason);
            let message = format!(
                "{place} cannot be started: {words}. Make what is missing, or correct spec.workload.template"
            );
            Some(Trouble::new(Reason::ContainerConfig, message))
        }
        reason => {
            let last = last_run(container, state)?;
            let looping = reason == Some("CrashLoopBackOff") || keeps_ending(container, last);
            looping.then(|| Trouble::new(Reason::CrashLoop, crash_words(&place, pod, container, last)))
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
    match text.char_indices().nth(LONGEST_WORDS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// What the events of a pod that its node prepares say is wrong with it; the newest counts.
pub fn setup_trouble(pod: &str, events: &[Event]) -> Option<Trouble> {
    let of_setup = events.iter().filter_map(|event| Some((event, setup_reason(event.reason.as_deref()?)?)));
    let (event, reason) = of_setup.max_by_key(|(event, _)| (names_cause(event), told_at(event)))?;
    let words = words(event.message.as_deref(), event.reason.as_deref().unwrap_or_default());
    let message = match reason {
        Reason::VolumeMount => format!(
            "pod {pod}: a volume cannot be mounted: {words}. Make what is missing, or correct spec.workload.credentials and \
             spec.workload.template"
        ),
        _ => format!(
            "pod {pod} cannot be set up on its node: {words}. See to the node and the cluster's network"
        ),
    };
    Some(Trouble::new(reason, message))
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

/// When an event was told last, in microseconds since 1970.
fn told_at(event: &Event) -> i64 {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref());
    let seconds = event.last_timestamp.as_ref().map(|time| time.0.as_microsecond());
    let micro = series.or(event.event_time.as_ref()).map(|time| time.0.as_microsecond());
    seconds.max(micro).unwrap_or_default()
}
