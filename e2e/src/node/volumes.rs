//! Volumes of a pod as folders: ConfigMaps, Secrets and empty ones.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{ConfigMap, Container as Spec, KeyToPath, Secret, Volume};
use kube::{Api, ResourceExt};

use super::{Node, container::Unstartable, pod::Place, probe::unsupported};

/// Where each volume is mounted, and the folder that stands for it.
pub async fn mount(
    node: &Node,
    place: &Place,
    container: &Spec,
) -> Result<Vec<(String, PathBuf)>, Unstartable> {
    let mut mounts = Vec::new();
    let spec = place.pod.spec.as_ref();
    for mount in container.volume_mounts.iter().flatten() {
        let volumes = spec.and_then(|spec| spec.volumes.as_ref()).into_iter().flatten();
        let volume = volumes.into_iter().find(|volume| volume.name == mount.name);
        let volume = volume
            .ok_or_else(|| unsupported(&format!("mounts {}, which is no volume", mount.name), container))?;
        if mount.sub_path.is_some() || mount.sub_path_expr.is_some() {
            return Err(unsupported("mounts a part of a volume (subPath)", container));
        }
        let folder = place.folder.path().join("volumes").join(&volume.name);
        let files = files(node, place, container, volume).await?;
        write(&folder, files).map_err(|error| creating(format!("{}: {error}", folder.display())))?;
        mounts.push((mount.mount_path.clone(), folder));
    }
    Ok(mounts)
}

fn write(folder: &Path, files: BTreeMap<String, Vec<u8>>) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    for (name, content) in files {
        let path = folder.join(name);
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(path, content)?;
    }
    Ok(())
}

async fn files(
    node: &Node,
    place: &Place,
    container: &Spec,
    volume: &Volume,
) -> Result<BTreeMap<String, Vec<u8>>, Unstartable> {
    if let Some(source) = &volume.config_map {
        let found = config_map(node, place, &source.name).await?;
        return match found {
            Some(files) => chosen(files, source.items.as_deref(), &source.name),
            None => absent(source.optional, "ConfigMap", &source.name),
        };
    }
    if let Some(source) = &volume.secret {
        let name = source.secret_name.clone().unwrap_or_default();
        return match secret(node, place, &name).await? {
            Some(files) => chosen(files, source.items.as_deref(), &name),
            None => absent(source.optional, "Secret", &name),
        };
    }
    if volume.empty_dir.is_some() {
        return Ok(BTreeMap::new());
    }
    Err(unsupported(&format!("mounts volume {}, no ConfigMap, Secret or emptyDir", volume.name), container))
}

fn absent(optional: Option<bool>, kind: &str, name: &str) -> Result<BTreeMap<String, Vec<u8>>, Unstartable> {
    if optional == Some(true) {
        Ok(BTreeMap::new())
    } else {
        Err(creating(format!("{kind} {name} not found")))
    }
}

/// All files, or those that a volume names.
fn chosen(
    mut files: BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    of: &str,
) -> Result<BTreeMap<String, Vec<u8>>, Unstartable> {
    let Some(items) = items.filter(|items| !items.is_empty()) else { return Ok(files) };
    let named = items.iter().map(|item| {
        let content = files.remove(&item.key);
        let content = content.ok_or_else(|| creating(format!("{of} has no key {}", item.key)))?;
        Ok((item.path.clone(), content))
    });
    named.collect()
}

/// What is in a ConfigMap; None where there is none.
pub async fn config_map(
    node: &Node,
    place: &Place,
    name: &str,
) -> Result<Option<BTreeMap<String, Vec<u8>>>, Unstartable> {
    let api: Api<ConfigMap> =
        Api::namespaced(node.client.clone(), &place.pod.namespace().unwrap_or_default());
    let found = api.get_opt(name).await.map_err(|error| creating(error.to_string()))?;
    Ok(found.map(|found| {
        let texts = found.data.unwrap_or_default().into_iter().map(|(key, text)| (key, text.into_bytes()));
        texts
            .chain(found.binary_data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)))
            .collect()
    }))
}

/// What is in a Secret; None where there is none.
pub async fn secret(
    node: &Node,
    place: &Place,
    name: &str,
) -> Result<Option<BTreeMap<String, Vec<u8>>>, Unstartable> {
    let api: Api<Secret> = Api::namespaced(node.client.clone(), &place.pod.namespace().unwrap_or_default());
    let found = api.get_opt(name).await.map_err(|error| creating(error.to_string()))?;
    Ok(found
        .map(|found| found.data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)).collect()))
}

fn creating(message: String) -> Unstartable {
    Unstartable { reason: "ContainerCreating", message }
}
