//! The program, arguments and variables of a container, as a kubelet resolves them. Two things are others than in a cluster: a listen address
//! 0.0.0.0 is the pod's own, since all pods share this machine, and a path below a mount is one of the pod's folder.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{Container as Spec, EnvVar, EnvVarSource, LifecycleHandler, Pod};
use kube::ResourceExt;

use super::{NAME, Node, container::Unstartable, pod::Place, probe::unsupported, volumes};

/// What a process is given.
#[derive(Debug)]
pub struct Environment {
    pub args: Vec<String>,
    pub variables: BTreeMap<String, String>,
}

/// The program of a container's image.
pub fn program<'a>(node: &'a Node, container: &Spec) -> Result<&'a Path, Unstartable> {
    if container.command.is_some() {
        return Err(unsupported("has a command in place of the image's program", container));
    }
    let image = container.image.as_deref().unwrap_or_default();
    let (repository, tag) = image.rsplit_once(':').unwrap_or((image, ""));
    let repository = if tag.contains('/') { image } else { repository };
    node.settings.programs.get(repository).map(PathBuf::as_path).ok_or_else(|| {
        let known: Vec<_> = node.settings.programs.keys().map(String::as_str).collect();
        let message =
            format!("no image {image} here: this node pulls none, and has programs for {}", known.join(", "));
        Unstartable { reason: "ErrImagePull", message }
    })
}

/// Resolves what a container declares.
pub async fn resolve(node: &Node, place: &Place, container: &Spec) -> Result<Environment, Unstartable> {
    if container.env_from.as_ref().is_some_and(|sources| !sources.is_empty()) {
        return Err(unsupported("has envFrom", container));
    }
    let hooks = container.lifecycle.as_ref();
    let other =
        |hook: &LifecycleHandler| hook.exec.is_some() || hook.http_get.is_some() || hook.tcp_socket.is_some();
    if hooks.is_some_and(|hooks| hooks.post_start.is_some() || hooks.pre_stop.as_ref().is_some_and(other)) {
        return Err(unsupported("has a lifecycle hook that is not preStop.sleep", container));
    }
    let has_init =
        place.pod.spec.as_ref().is_some_and(|spec| spec.init_containers.iter().flatten().count() > 0);
    if has_init {
        return Err(unsupported("has init containers before it", container));
    }
    let here = Here { address: place.address, mounts: volumes::mount(node, place, container).await? };
    let mut variables = BTreeMap::new();
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => Some(expand(variable.value.as_deref().unwrap_or_default(), &variables)),
            Some(source) => sourced(node, place, container, variable, source).await?,
        };
        if let Some(value) = value {
            variables.insert(variable.name.clone(), here.place(value));
        }
    }
    let args = container.args.iter().flatten().map(|arg| here.place(expand(arg, &variables))).collect();
    Ok(Environment { args, variables })
}

async fn sourced(
    node: &Node,
    place: &Place,
    container: &Spec,
    variable: &EnvVar,
    source: &EnvVarSource,
) -> Result<Option<String>, Unstartable> {
    if let Some(field) = &source.field_ref {
        let value = field_of(&place.pod, place.address, &field.field_path);
        return value.map(Some).ok_or_else(|| {
            unsupported(&format!("has {} from the field {}", variable.name, field.field_path), container)
        });
    }
    let (kind, name, key, optional, found) = if let Some(from) = &source.config_map_key_ref {
        (
            "ConfigMap",
            &from.name,
            &from.key,
            from.optional,
            volumes::config_map(node, place, &from.name).await?,
        )
    } else if let Some(from) = &source.secret_key_ref {
        ("Secret", &from.name, &from.key, from.optional, volumes::secret(node, place, &from.name).await?)
    } else {
        return Err(unsupported(&format!("has {} from a source unknown to it", variable.name), container));
    };
    match found.and_then(|mut data| data.remove(key)) {
        Some(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        None if optional == Some(true) => Ok(None),
        None => {
            let message = format!("couldn't find key {key} in {kind} {name}");
            Err(Unstartable { reason: "CreateContainerConfigError", message })
        }
    }
}

/// A field of a pod (the downward API).
fn field_of(pod: &Pod, address: Ipv4Addr, path: &str) -> Option<String> {
    let service_account = || pod.spec.as_ref()?.service_account_name.clone();
    let keyed = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']");
    match path {
        "metadata.name" => Some(pod.name_any()),
        "metadata.namespace" => pod.namespace(),
        "metadata.uid" => pod.uid(),
        "spec.nodeName" => Some(NAME.to_owned()),
        "spec.serviceAccountName" => service_account(),
        "status.podIP" => Some(address.to_string()),
        "status.hostIP" => Some(Ipv4Addr::LOCALHOST.to_string()),
        _ => {
            let label = keyed("metadata.labels['").map(|key| pod.labels().get(key));
            let annotation = keyed("metadata.annotations['").map(|key| pod.annotations().get(key));
            label.or(annotation).map(|value| value.cloned().unwrap_or_default())
        }
    }
}

/// What is another than in a cluster.
struct Here {
    address: Ipv4Addr,
    mounts: Vec<(String, PathBuf)>,
}

impl Here {
    fn place(&self, value: String) -> String {
        if let Ok(listen) = value.parse::<SocketAddr>()
            && listen.ip().is_unspecified()
        {
            return format!("{}:{}", self.address, listen.port());
        }
        let found = self.mounts.iter().find_map(|(path, folder)| {
            let below = Path::new(&value).strip_prefix(path).ok()?;
            Some(folder.join(below).display().to_string().trim_end_matches('/').to_owned())
        });
        found.unwrap_or(value)
    }
}

/// Puts the values of variables before it in the place of `$(NAME)`. What is not known stays, and `$$` is one `$`, as Kubernetes has it.
fn expand(value: &str, before: &BTreeMap<String, String>) -> String {
    let mut expanded = String::new();
    let mut rest = value;
    while let Some((plain, after)) = rest.split_once('$') {
        expanded.push_str(plain);
        let reference = after.strip_prefix('(').and_then(|after| after.split_once(')'));
        rest = match reference {
            Some((name, after)) if before.contains_key(name) => {
                expanded.push_str(&before[name]);
                after
            }
            _ => {
                expanded.push('$');
                after.strip_prefix('$').unwrap_or(after)
            }
        };
    }
    expanded + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_refers_to_those_before_it_and_to_no_others() {
        let before = BTreeMap::from([("POD".to_owned(), "orders-1".to_owned())]);
        for (value, expanded) in [
            ("pod=$(POD)", "pod=orders-1"),
            ("$(POD)$(POD)", "orders-1orders-1"),
            ("$(NOBODY)", "$(NOBODY)"),
            ("$$(POD)", "$(POD)"),
            ("5 $ and (POD)", "5 $ and (POD)"),
            ("", ""),
        ] {
            assert_eq!(expand(value, &before), expanded);
        }
    }

    #[test]
    fn only_listen_addresses_and_mounted_paths_are_others_than_in_a_cluster() {
        let mounts = vec![("/etc/jetwright".to_owned(), PathBuf::from("/tmp/pod/volumes/jetwright"))];
        let here = Here { address: Ipv4Addr::new(127, 77, 0, 3), mounts };
        for (value, placed) in [
            ("0.0.0.0:8080", "127.77.0.3:8080"),
            ("/etc/jetwright/bindings.yaml", "/tmp/pod/volumes/jetwright/bindings.yaml"),
            ("/etc/jetwright", "/tmp/pod/volumes/jetwright"),
            ("/etc/jetwright-other", "/etc/jetwright-other"),
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
        ] {
            assert_eq!(here.place(value.to_owned()), placed);
        }
    }

    #[test]
    fn fields_of_a_pod_are_those_of_the_downward_api() {
        let pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "orders-1", "namespace": "shop", "labels": {"app": "orders"}},
            "spec": {"containers": [], "serviceAccountName": "orders"},
        }));
        let pod: Pod = pod.unwrap();
        let field = |path| field_of(&pod, Ipv4Addr::new(127, 77, 0, 3), path);
        assert_eq!(field("metadata.name").as_deref(), Some("orders-1"));
        assert_eq!(field("status.podIP").as_deref(), Some("127.77.0.3"));
        assert_eq!(field("metadata.labels['app']").as_deref(), Some("orders"));
        assert_eq!(field("metadata.labels['none']").as_deref(), Some(""));
        assert_eq!(field("status.phase"), None);
    }
}
