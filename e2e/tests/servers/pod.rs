//! A pod of a Deployment as a node would run it: its first container as a process, with exactly the environment that the
//! Deployment declares. What a kubelet resolves is resolved here, and only listen addresses are others, since all pods share
//! this machine.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use jetwright_testing::{Folder, Namespace, Process, ProcessBuilder, await_until, binary, free_port};
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Container, EnvVar, PodSpec, Secret, Volume},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::Api;

use crate::kubelet::Kubelet;

/// A pod usually becomes ready in a fraction of a second.
const START: Duration = Duration::from_secs(30);
/// The grace that Kubernetes gives a pod by default.
const GRACE: Duration = Duration::from_secs(30);
/// Addresses to listen on are told in variables with names that end so.
const LISTEN_ADDRESS: &str = "_ADDRESS";

/// A pod, whose container can be stopped and started again in its place.
pub struct Pod {
    pub name: String,
    start: ProcessBuilder,
    kubelet: Kubelet,
    process: Mutex<Arc<Process>>,
    /// Port of the container to port of this machine.
    ports: BTreeMap<u16, u16>,
    readiness: String,
}

impl Pod {
    /// Starts a pod of a Deployment, and waits until its readiness probe succeeds.
    pub async fn start(namespace: &Namespace<'_>, deployment: &str, ordinal: u32) -> Self {
        let name = format!("{deployment}-{ordinal}");
        let deployments: Api<Deployment> = namespace.api();
        let declared = deployments.get(deployment).await.unwrap();
        let kubelet = Box::pin(Kubelet::create(namespace, &name, &declared)).await;
        let spec = declared.spec.unwrap().template.spec.unwrap();
        let container = spec.containers[0].clone();
        let folder = Folder::new(&name);
        let node = Node {
            pod: &name,
            uid: &kubelet.uid,
            namespace,
            mounts: mount(namespace, &spec, &container, folder.path()).await,
        };
        let (variables, ports) = node.environment(&container).await;
        let program = program(container.image.as_deref().unwrap());
        assert!(container.command.is_none(), "the image's own program is run: {:?}", container.command);
        let start = Process::builder(binary(&program))
            .name(&name)
            .folder(&folder)
            .args(container.args.iter().flatten())
            .envs(variables);
        let probe = container.readiness_probe.as_ref().unwrap().http_get.clone().unwrap();
        let readiness = format!("{}{}", url(&ports, number(&container, &probe.port)), probe.path.unwrap());
        let process = Mutex::new(Arc::new(start.clone().start()));
        let pod = Self { name, start, kubelet, process, ports, readiness };
        Box::pin(pod.kubelet.started(&pod.process())).await;
        pod.await_ready().await;
        pod
    }

    /// Where a port of the container is reached.
    pub fn url(&self, port: u16) -> String {
        url(&self.ports, port)
    }

    /// The running process.
    pub fn process(&self) -> Arc<Process> {
        Arc::clone(&self.process.lock().unwrap())
    }

    /// Stops it as a kubelet does, and requires that it ends well.
    pub async fn stop(&self) {
        let process = self.process();
        process.signal("TERM");
        let status = process.wait_exit(GRACE).await;
        assert_eq!(status.code(), Some(0), "{} was told to end:\n{}", self.name, process.log());
    }

    /// Starts the container again after it ended, in the same pod, and waits until it is ready.
    pub async fn start_again(&self) {
        assert!(self.process().exited().is_some(), "{} still runs", self.name);
        *self.process.lock().unwrap() = Arc::new(self.start.clone().start());
        Box::pin(self.kubelet.started(&self.process())).await;
        self.await_ready().await;
    }

    async fn await_ready(&self) {
        let process = self.process();
        await_until(&format!("{} is ready", self.name), START, async || {
            assert!(process.exited().is_none(), "{} ended at its start:\n{}", self.name, process.log());
            let answer = reqwest::get(&self.readiness).await.map_err(|error| error.to_string())?;
            let ready = answer.status().is_success();
            if ready { Ok(()) } else { Err(answer.text().await.unwrap_or_default()) }
        })
        .await;
    }
}

/// Where a port of a container is reached whose program listens on these.
fn url(ports: &BTreeMap<u16, u16>, port: u16) -> String {
    let here = ports.get(&port).unwrap_or_else(|| panic!("nothing listens on {port}: {ports:?}"));
    format!("http://127.0.0.1:{here}")
}

/// The program of an image `jetwright/<program>:<tag>`.
fn program(image: &str) -> String {
    let (repository, tag) = image.split_once(':').unwrap();
    assert!(!tag.is_empty(), "{image}");
    repository.replace('/', "-")
}

/// The number of a container's port, which may be given by its name.
fn number(container: &Container, port: &IntOrString) -> u16 {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            ports.find(|port| port.name.as_ref() == Some(name)).unwrap().container_port
        }
    };
    number.try_into().unwrap()
}

/// Where each volume is mounted, and the folder that stands for it.
async fn mount(
    namespace: &Namespace<'_>,
    spec: &PodSpec,
    container: &Container,
    folder: &Path,
) -> Vec<(String, PathBuf)> {
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = spec.volumes.iter().flatten().find(|volume| volume.name == mount.name).unwrap();
        assert_eq!((&mount.sub_path, mount.read_only), (&None, Some(true)), "{mount:?}");
        let here = folder.join(&mount.name);
        fs::create_dir(&here).unwrap();
        for (file, content) in files(namespace, volume).await {
            fs::write(here.join(file), content).unwrap();
        }
        mounts.push((mount.mount_path.clone(), here));
    }
    mounts
}

/// What is in a volume: that of a whole ConfigMap or Secret.
async fn files(namespace: &Namespace<'_>, volume: &Volume) -> BTreeMap<String, Vec<u8>> {
    match (&volume.config_map, &volume.secret) {
        (Some(source), None) if source.items.is_none() => {
            let config_maps: Api<ConfigMap> = namespace.api();
            let files = config_maps.get(&source.name).await.unwrap().data.unwrap();
            files.into_iter().map(|(file, text)| (file, text.into_bytes())).collect()
        }
        (None, Some(source)) if source.items.is_none() => {
            let secrets: Api<Secret> = namespace.api();
            let files = secrets.get(source.secret_name.as_ref().unwrap()).await.unwrap().data.unwrap();
            files.into_iter().map(|(file, content)| (file, content.0)).collect()
        }
        _ => panic!("this node does not know {volume:?}"),
    }
}

/// What a container's environment is resolved from.
struct Node<'a> {
    pod: &'a str,
    uid: &'a str,
    namespace: &'a Namespace<'a>,
    mounts: Vec<(String, PathBuf)>,
}

impl Node<'_> {
    /// The variables of a container, and its ports.
    async fn environment(&self, container: &Container) -> (BTreeMap<String, String>, BTreeMap<u16, u16>) {
        assert!(container.env_from.is_none(), "no variables from elsewhere: {:?}", container.env_from);
        let (mut variables, mut ports) = (BTreeMap::new(), BTreeMap::new());
        for variable in container.env.iter().flatten() {
            let mut value = self.value(variable, &variables).await;
            if variable.name.ends_with(LISTEN_ADDRESS) {
                let declared: SocketAddr = value.parse().unwrap();
                assert_eq!(declared.ip(), Ipv4Addr::UNSPECIFIED, "nobody reaches {} there", variable.name);
                let here = free_port();
                assert_eq!(ports.insert(declared.port(), here), None, "{} is taken twice", declared.port());
                value = format!("127.0.0.1:{here}");
            }
            assert!(!value.contains("$("), "{} refers to what is not before it: {value}", variable.name);
            variables.insert(variable.name.clone(), value);
        }
        for port in container.ports.iter().flatten() {
            let number = port.container_port.try_into().unwrap();
            assert!(ports.contains_key(&number), "nothing listens on the declared port {number}");
        }
        (variables, ports)
    }

    async fn value(&self, variable: &EnvVar, before: &BTreeMap<String, String>) -> String {
        let Some(source) = &variable.value_from else {
            return self.mounted(expand(variable.value.as_deref().unwrap_or_default(), before));
        };
        if let Some(field) = &source.field_ref {
            return match field.field_path.as_str() {
                "metadata.name" => self.pod.to_owned(),
                "metadata.uid" => self.uid.to_owned(),
                "metadata.namespace" => self.namespace.name().to_owned(),
                other => panic!("{} is from {other}, which this node does not know", variable.name),
            };
        }
        let key = source.config_map_key_ref.as_ref().unwrap();
        let config_maps: Api<ConfigMap> = self.namespace.api();
        config_maps.get(&key.name).await.unwrap().data.unwrap()[&key.key].clone()
    }

    /// A mount's path, or one below it, is that of the folder that stands for it.
    fn mounted(&self, value: String) -> String {
        let found = self.mounts.iter().find_map(|(path, here)| {
            let below = Path::new(&value).strip_prefix(path).ok()?;
            Some(here.join(below).display().to_string())
        });
        found.unwrap_or(value)
    }
}

/// Puts the values of variables before it in the place of `$(NAME)`; what is not known stays, as Kubernetes has it.
fn expand(value: &str, before: &BTreeMap<String, String>) -> String {
    before.iter().fold(value.to_owned(), |value, (name, known)| value.replace(&format!("$({name})"), known))
}
