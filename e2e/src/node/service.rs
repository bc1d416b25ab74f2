//! Services without a network of the cluster: a port of this machine for each, which sends every connection to a pod that is ready.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result};
use k8s_openapi::{
    api::core::v1::{Pod, Service},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{Api, ResourceExt};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};

use super::{Node, lock, pod::Place};

/// A pod that is ready.
pub struct Endpoint {
    namespace: String,
    labels: BTreeMap<String, String>,
    address: Ipv4Addr,
    /// Its named ports.
    ports: BTreeMap<String, u16>,
}

impl Endpoint {
    pub fn of(place: &Place) -> Self {
        let Pod { metadata, spec, .. } = &place.pod;
        let containers = spec.iter().flat_map(|spec| &spec.containers);
        let ports = containers.flat_map(|container| container.ports.iter().flatten());
        let named = |port: &k8s_openapi::api::core::v1::ContainerPort| {
            Some((port.name.clone()?, port.container_port.try_into().ok()?))
        };
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            labels: metadata.labels.clone().unwrap_or_default(),
            address: place.address,
            ports: ports.filter_map(named).collect(),
        }
    }

    fn is_of(&self, service: &Service) -> bool {
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let selects = |(key, value): (&String, &String)| self.labels.get(key) == Some(value);
        let selected = selector.is_some_and(|selector| !selector.is_empty() && selector.iter().all(selects));
        service.namespace().as_deref() == Some(&self.namespace) && selected
    }

    fn target(&self, service: &Service) -> Option<SocketAddr> {
        let port = service.spec.as_ref()?.ports.as_ref()?.first()?;
        let number = match &port.target_port {
            Some(IntOrString::String(name)) => *self.ports.get(name)?,
            Some(IntOrString::Int(number)) => (*number).try_into().ok()?,
            None => port.port.try_into().ok()?,
        };
        Some((self.address, number).into())
    }
}

impl Node {
    /// Takes connections for a Service, for as long as it is polled.
    pub async fn serve(self: Arc<Self>, namespace: &str, name: &str, listener: TcpListener) {
        let turns = Arc::new(AtomicUsize::new(0));
        loop {
            let Ok((connection, _)) = listener.accept().await else { continue };
            let (node, turns) = (Arc::clone(&self), Arc::clone(&turns));
            let services = Api::namespaced(self.client.clone(), namespace);
            let name = name.to_owned();
            tokio::spawn(async move {
                // Where no pod is ready, the connection ends: what a client sees of a Service without endpoints.
                let _ =
                    node.forward(connection, services, &name, turns.fetch_add(1, Ordering::Relaxed)).await;
            });
        }
    }

    async fn forward(
        &self,
        mut client: TcpStream,
        services: Api<Service>,
        name: &str,
        turn: usize,
    ) -> Result<()> {
        let service = services.get(name).await?;
        let target = {
            let endpoints = lock(&self.endpoints);
            let targets: Vec<_> = endpoints
                .values()
                .filter(|one| one.is_of(&service))
                .filter_map(|one| one.target(&service))
                .collect();
            let index = turn.checked_rem(targets.len()).context("no pod is ready")?;
            targets[index]
        };
        let mut server = TcpStream::connect(target).await?;
        copy_bidirectional(&mut client, &mut server).await?;
        Ok(())
    }
}
