//! In: a pod template. Out: everything in it that a level of the Pod Security Standards does not allow. Pure.
//!
//! The rules are those of Kubernetes' own admission plugin PodSecurity at the version of the API server that the tests run
//! (<https://kubernetes.io/docs/concepts/security/pod-security-standards/>). It judges a namespace only where it has a label, which who may
//! create EventConsumers need not have set; this judges every template. It reads the template as JSON: a type that cannot hold everything
//! that the API server takes would let pass what it cannot read. What has a type that the API server refuses counts as a violation.

use serde_json::{Map, Value};

/// What pods may be allowed: a level of the Pod Security Standards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum Level {
    /// What is hardened by today's best practices.
    Restricted,
    /// What has no known way to more privileges.
    Baseline,
    /// Everything.
    Privileged,
}

/// Linux capabilities that a container may add at level baseline: a container runtime gives them by itself.
const DEFAULT_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// Kernel parameters that belong to the pod alone.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];
const CONTAINER_TYPES: [&str; 5] =
    ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
const CONFINED: [&str; 2] = ["RuntimeDefault", "Localhost"];
/// Volumes that bring nothing of a node or a network into the pod.
const RESTRICTED_VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];
const APP_ARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// What the level does not allow, each with its field and what to do.
#[must_use]
pub fn violations(template: &Value, level: Level) -> Vec<String> {
    if level == Level::Privileged {
        return Vec::new();
    }
    let pod = Pod::new(template);
    let mut found = baseline(&pod);
    if level == Level::Restricted {
        found.extend(restricted(&pod));
    }
    found
}

/// A part of the template, with its path.
struct Part<'a> {
    path: String,
    value: &'a Value,
}

impl Part<'_> {
    fn get(&self, field: &str) -> Option<&Value> {
        self.value.get(field).filter(|value| !value.is_null())
    }

    /// A field, and what is wrong with it.
    fn wrong(&self, field: &str, what: impl AsRef<str>) -> String {
        format!("{}.{field} {}", self.path, what.as_ref())
    }
}

struct Pod<'a> {
    template: &'a Value,
    spec: Part<'a>,
    /// Those that initialize included.
    containers: Vec<Part<'a>>,
    /// The pod's own.
    context: Part<'a>,
    /// Those of the containers, in their order.
    contexts: Vec<Part<'a>>,
}

impl<'a> Pod<'a> {
    fn new(template: &'a Value) -> Self {
        let spec = &template["spec"];
        let containers: Vec<_> = ["initContainers", "containers", "ephemeralContainers"]
            .into_iter()
            .flat_map(|field| {
                items(&spec[field]).map(move |value| {
                    let name = value["name"].as_str().unwrap_or_default();
                    Part { path: format!("spec.{field}[{name}]"), value }
                })
            })
            .collect();
        let context = |part: &Part<'a>| Part {
            path: format!("{}.securityContext", part.path),
            value: &part.value["securityContext"],
        };
        let contexts = containers.iter().map(context).collect();
        let spec = Part { path: "spec".to_owned(), value: spec };
        let context = context(&spec);
        Self { template, spec, containers, context, contexts }
    }

    /// The pod's security context, and those of its containers.
    fn all_contexts(&self) -> impl Iterator<Item = &Part<'a>> {
        std::iter::once(&self.context).chain(&self.contexts)
    }

    fn is_windows(&self) -> bool {
        self.spec.value["os"]["name"] == "windows"
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    items(list).map(|item| item.as_str().unwrap_or("?"))
}

fn baseline(pod: &Pod<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        if pod.spec.get(field).is_some_and(|value| value != false) {
            found.push(pod.spec.wrong(field, "must not be true"));
        }
    }
    for volume in items(&pod.spec.value["volumes"]) {
        if volume.get("hostPath").is_some_and(|source| !source.is_null()) {
            found.push(format!("{} must not be a hostPath", volume_path(volume)));
        }
    }
    for sysctl in items(&pod.context.value["sysctls"]) {
        let name = sysctl["name"].as_str().unwrap_or_default();
        if !SAFE_SYSCTLS.contains(&name) {
            found.push(pod.context.wrong("sysctls", format!("must not set {name}")));
        }
    }
    found.extend(app_armor_annotations(pod));
    found.extend(pod.all_contexts().flat_map(privileges));
    for container in &pod.containers {
        found.extend(host_access(container));
    }
    for context in &pod.contexts {
        for name in texts(&context.value["capabilities"]["add"]) {
            if !DEFAULT_CAPABILITIES.contains(&name) {
                found.push(context.wrong("capabilities.add", format!("must not have {name}")));
            }
        }
    }
    found
}

fn volume_path(volume: &Value) -> String {
    format!("spec.volumes[{}]", volume["name"].as_str().unwrap_or_default())
}

/// The older way to choose AppArmor profiles, which is still obeyed.
fn app_armor_annotations(pod: &Pod<'_>) -> Vec<String> {
    let annotations = pod.template["metadata"]["annotations"].as_object();
    let named = annotations.into_iter().flatten().filter(|(key, _)| key.starts_with(APP_ARMOR_ANNOTATION));
    let is_allowed = |value: &Value| {
        let profile = value.as_str();
        profile.is_some_and(|name| {
            name.is_empty() || name == "runtime/default" || name.starts_with("localhost/")
        })
    };
    let wrong = named.filter(|(_, value)| !is_allowed(value));
    wrong
        .map(|(key, _)| format!("metadata.annotations[{key}] must be runtime/default or localhost/…"))
        .collect()
}

/// What is wrong at level baseline with a security context, of the pod or of a container.
fn privileges(context: &Part<'_>) -> Vec<String> {
    let mut found = Vec::new();
    let mut must_be = |is_so: bool, field: &str, what: &str| {
        if !is_so {
            found.push(context.wrong(field, what));
        }
    };
    let unset_or = |value: Option<&Value>, wanted: &[&str]| {
        value.is_none_or(|value| value.as_str().is_some_and(|value| wanted.contains(&value)))
    };
    must_be(context.get("privileged").is_none_or(|value| value == false), "privileged", "must not be true");
    must_be(unset_or(context.get("procMount"), &["Default"]), "procMount", "must be Default");
    let windows = &context.value["windowsOptions"]["hostProcess"];
    must_be(windows.is_null() || windows == false, "windowsOptions.hostProcess", "must not be true");
    for profile in ["seccompProfile", "appArmorProfile"] {
        let confined = context.get(profile).is_none_or(is_confined);
        must_be(confined, &format!("{profile}.type"), "must be RuntimeDefault or Localhost");
    }
    if let Some(options) = context.get("seLinuxOptions") {
        let option = |field: &str| options.get(field).filter(|value| !value.is_null());
        must_be(
            unset_or(option("type"), &CONTAINER_TYPES),
            "seLinuxOptions.type",
            "must be that of a container, such as container_t",
        );
        for field in ["user", "role"] {
            must_be(unset_or(option(field), &[""]), &format!("seLinuxOptions.{field}"), "must not be set");
        }
    }
    found
}

fn is_confined(profile: &Value) -> bool {
    profile["type"].as_str().is_some_and(|type_| CONFINED.contains(&type_))
}

/// Ports of the node that a container takes, and hosts that the kubelet would call for it.
fn host_access(container: &Part<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for port in items(&container.value["ports"]) {
        let host_port = &port["hostPort"];
        if !host_port.is_null() && !is_zero(host_port) {
            found.push(container.wrong("ports", format!("must not have hostPort {host_port}")));
        }
    }
    let hooks =
        ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle.postStart", "lifecycle.preStop"];
    for hook in hooks {
        let handler = hook.split('.').fold(container.value, |value, field| &value[field]);
        for action in ["httpGet", "tcpSocket"] {
            let host = &handler[action]["host"];
            if !host.is_null() && host != "" {
                found.push(container.wrong(&format!("{hook}.{action}.host"), "must not be set"));
            }
        }
    }
    found
}

fn is_zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

fn restricted(pod: &Pod<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for volume in items(&pod.spec.value["volumes"]) {
        if let Some(source) = other_source(volume).filter(|source| *source != "hostPath") {
            found.push(format!("{} must not be of type {source}", volume_path(volume)));
        }
    }
    found.extend(users(pod));
    if !pod.is_windows() {
        found.extend(confinement(pod));
    }
    found
}

/// The type of a volume that is none of the allowed ones. One without a type is an emptyDir.
fn other_source(volume: &Value) -> Option<&str> {
    let sources =
        || volume.as_object().into_iter().flat_map(Map::iter).filter(|(_, source)| !source.is_null());
    let mut names = sources().map(|(field, _)| field.as_str()).filter(|field| *field != "name");
    if names.clone().any(|name| RESTRICTED_VOLUMES.contains(&name)) {
        return None;
    }
    names.next()
}

/// No container may be root.
fn users(pod: &Pod<'_>) -> Vec<String> {
    let mut found = Vec::new();
    let by_pod = pod.context.get("runAsNonRoot").is_some_and(|value| value == true);
    if pod.context.get("runAsNonRoot").is_some_and(|value| value != true) {
        found.push(pod.context.wrong("runAsNonRoot", "must be true"));
    }
    for context in &pod.contexts {
        let is_so = context.get("runAsNonRoot").map_or(by_pod, |value| value == true);
        if !is_so {
            found.push(context.wrong("runAsNonRoot", "must be true, here or in the pod's securityContext"));
        }
    }
    for context in pod.all_contexts() {
        if context.get("runAsUser").is_some_and(is_zero) {
            found.push(context.wrong("runAsUser", "must not be 0"));
        }
    }
    found
}

/// What every container of Linux has to give up.
fn confinement(pod: &Pod<'_>) -> Vec<String> {
    let mut found = Vec::new();
    let by_pod = pod.context.get("seccompProfile").is_some_and(is_confined);
    for context in &pod.contexts {
        if context.get("allowPrivilegeEscalation").is_none_or(|value| value != false) {
            found.push(context.wrong("allowPrivilegeEscalation", "must be false"));
        }
        let capabilities = &context.value["capabilities"];
        if !texts(&capabilities["drop"]).any(|name| name == "ALL") {
            found.push(context.wrong("capabilities.drop", "must have ALL"));
        }
        // Level baseline names those that are not the runtime's own.
        let added = texts(&capabilities["add"]).filter(|name| *name != "NET_BIND_SERVICE");
        for name in added.filter(|name| DEFAULT_CAPABILITIES.contains(name)) {
            found.push(context.wrong("capabilities.add", format!("must not have {name}")));
        }
        if context.get("seccompProfile").is_none() && !by_pod {
            let what = "must be RuntimeDefault or Localhost, here or in the pod's securityContext";
            found.push(context.wrong("seccompProfile.type", what));
        }
    }
    found
}
