//! Attaches the programs by links that are pinned, and so outlive this process. A successor replaces the program inside
//! the link that is there: exactly one program of ours is attached at any time.
use crate::{
    error::DatapathError,
    load::{AttachMode, Datapath},
    sys,
};
use aya::programs::{
    CgroupAttachMode, CgroupSockAddr, SchedClassifier, SkLookup, TcAttachType,
    links::FdLink,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
};
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};
use weft_bpf_abi::program;

const CGROUP_PROGRAMS: [&str; 10] = [
    program::CONNECT4,
    program::CONNECT6,
    program::SENDMSG4,
    program::SENDMSG6,
    program::RECVMSG4,
    program::RECVMSG6,
    program::GETPEERNAME4,
    program::GETPEERNAME6,
    program::BIND4,
    program::BIND6,
];
/// Pins of what `attach_node` puts on interfaces, so that it knows what it no longer wants.
const DEVICE_PROGRAMS: [&str; 3] = [program::FROM_NETWORK, program::TO_NETWORK, program::FROM_TUNNEL];
pub(crate) const INTERFACE_PROGRAMS: [(&str, TcAttachType); 5] = [
    (program::FROM_POD, TcAttachType::Ingress),
    (program::TO_POD, TcAttachType::Egress),
    (program::FROM_NETWORK, TcAttachType::Ingress),
    (program::TO_NETWORK, TcAttachType::Egress),
    (program::FROM_TUNNEL, TcAttachType::Ingress),
];
/// Ours in clsact mode: fixed, so that a successor finds and replaces it.
const FILTER_PRIORITY: u16 = 77;
const FILTER_HANDLE: TcHandle = TcHandle::new(0, 1);

impl Datapath {
    /// Attaches what belongs to the node as a whole, and detaches it from devices that are no longer named. Must run in
    /// the node's network namespace. `cgroup`: the folder whose processes are this node's, the pods' among them.
    /// `devices`: native ones, towards the other nodes. `tunnel`: the WireGuard device; where it does not
    /// exist yet, `attach_tunnel` is to follow.
    pub fn attach_node(&mut self, cgroup: &Path, devices: &[&str], tunnel: Option<&str>) -> Result<(), DatapathError> {
        for name in CGROUP_PROGRAMS {
            self.attach_cgroup(name, cgroup)?;
        }
        let mut wanted: BTreeSet<String> =
            tunnel.map(|device| pin_name(program::FROM_TUNNEL, device)).into_iter().collect();
        for device in devices {
            for (name, hook) in
                [(program::FROM_NETWORK, TcAttachType::Ingress), (program::TO_NETWORK, TcAttachType::Egress)]
            {
                self.attach_interface(name, device, hook)?;
                wanted.insert(pin_name(name, device));
            }
        }
        if let Some(device) = tunnel.filter(|device| nix::net::if_::if_nametoindex(*device).is_ok()) {
            self.attach_tunnel(device)?;
        }
        self.attach_netns(program::REOPEN_TIME_WAIT)?;
        self.detach_unwanted(&wanted)?;
        self.remove_other_versions()
    }

    /// Attaches to the WireGuard device, which weft-proxy makes. Call it again when the device may be a new one.
    pub fn attach_tunnel(&mut self, device: &str) -> Result<(), DatapathError> {
        self.attach_interface(program::FROM_TUNNEL, device, TcAttachType::Ingress)
    }

    /// Attaches to the host side of a pod's veth. Call it for every pod at start too.
    pub fn attach_endpoint(&mut self, interface: &str) -> Result<(), DatapathError> {
        // What the pod may receive is decided first.
        self.attach_interface(program::TO_POD, interface, TcAttachType::Egress)?;
        self.attach_interface(program::FROM_POD, interface, TcAttachType::Ingress)
    }

    /// Forgets a pod's veth, which may be gone already.
    pub fn detach_endpoint(&mut self, interface: &str) -> Result<(), DatapathError> {
        for (name, hook) in [(program::FROM_POD, TcAttachType::Ingress), (program::TO_POD, TcAttachType::Egress)] {
            unpin(&self.pin(name, interface))?;
            if self.mode == AttachMode::Clsact {
                // Filters go with their interface.
                let _ = tc::qdisc_detach_program(interface, hook, name);
            }
        }
        Ok(())
    }

    /// Interfaces that have an endpoint's programs pinned, for pods that went while no agent ran.
    pub fn attached_endpoints(&self) -> Vec<String> {
        let prefix = format!("{}-", program::FROM_POD);
        self.pins().iter().filter_map(|pin| pin.strip_prefix(&prefix).map(unescape)).collect()
    }

    pub(crate) fn links_dir(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Names of the pinned links.
    pub(crate) fn pins(&self) -> Vec<String> {
        let Ok(dir) = fs::read_dir(self.links_dir()) else { return Vec::new() };
        dir.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
    }

    fn attach_cgroup(&mut self, name: &'static str, cgroup: &Path) -> Result<(), DatapathError> {
        let target = cgroup.display().to_string();
        let no_target = |cause| DatapathError::Target { target: format!("cgroup {target}"), cause };
        let dir = File::open(cgroup).map_err(no_target)?;
        let id = dir.metadata().map_err(no_target)?.ino();
        let pin = self.links_dir().join(name);
        if self.replace(name, &pin, id, &target)? {
            return Ok(());
        }
        let program: &mut CgroupSockAddr = self.program(name)?;
        let attached = || -> Result<FdLink, Box<dyn std::error::Error + Send + Sync>> {
            // Links always allow other programs beside them; the flag for that is refused.
            let id = program.attach(dir, CgroupAttachMode::Single)?;
            Ok(program.take_link(id)?.try_into()?)
        };
        keep(attached().map_err(|cause| failed(name, &target, cause))?, &pin, name, &target)
    }

    fn attach_netns(&mut self, name: &'static str) -> Result<(), DatapathError> {
        let target = "the network namespace".to_owned();
        let no_target = |cause| DatapathError::Target { target: target.clone(), cause };
        let netns = File::open("/proc/thread-self/ns/net").map_err(no_target)?;
        let inode = netns.metadata().map_err(no_target)?.ino();
        let pin = self.links_dir().join(name);
        if self.replace(name, &pin, inode, &target)? {
            return Ok(());
        }
        let program: &mut SkLookup = self.program(name)?;
        let attached = || -> Result<FdLink, Box<dyn std::error::Error + Send + Sync>> {
            let id = program.attach(netns)?;
            Ok(program.take_link(id)?.into())
        };
        keep(attached().map_err(|cause| failed(name, &target, cause))?, &pin, name, &target)
    }

    fn attach_interface(
        &mut self,
        name: &'static str,
        interface: &str,
        hook: TcAttachType,
    ) -> Result<(), DatapathError> {
        let target = format!("interface {interface}");
        let index = nix::net::if_::if_nametoindex(interface)
            .map_err(|errno| DatapathError::Target { target: target.clone(), cause: errno.into() })?;
        if self.mode == AttachMode::Clsact {
            return self.attach_filter(name, interface, hook).map_err(|cause| failed(name, &target, cause));
        }
        let pin = self.pin(name, interface);
        if self.replace(name, &pin, u64::from(index), &target)? {
            return Ok(());
        }
        let program: &mut SchedClassifier = self.program(name)?;
        let mut attached = || -> Result<FdLink, Box<dyn std::error::Error + Send + Sync>> {
            let options = TcAttachOptions::TcxOrder(Default::default());
            let id = program.attach_with_options(interface, hook, options)?;
            Ok(program.take_link(id)?.try_into()?)
        };
        keep(attached().map_err(|cause| failed(name, &target, cause))?, &pin, name, &target)
    }

    /// Before kernel 6.6: a filter has no link, stays until it is removed, and is replaced in place.
    fn attach_filter(
        &mut self,
        name: &'static str,
        interface: &str,
        hook: TcAttachType,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        // Fails where the qdisc is there already; the attachment below tells whether it is.
        let _ = tc::qdisc_add_clsact(interface);
        let program: &mut SchedClassifier = self.program(name)?;
        let options = NlOptions { priority: FILTER_PRIORITY, handle: FILTER_HANDLE, classid: None };
        let id = match program.attach_with_options(interface, hook, TcAttachOptions::Netlink(options)) {
            Ok(id) => id,
            Err(_) => {
                let present = SchedClassifierLink::attached(interface, hook, FILTER_PRIORITY, FILTER_HANDLE, None)?;
                program.attach_to_link(present)?
            }
        };
        // Dropped, it would detach.
        std::mem::forget(program.take_link(id)?);
        Ok(())
    }

    /// Puts the program into the link that is pinned there. False: there is none, or its target is gone or another.
    fn replace(&mut self, name: &'static str, pin: &Path, target: u64, label: &str) -> Result<bool, DatapathError> {
        let link = match sys::open_pin(pin) {
            Ok(link) => link,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(cause) => return Err(failed(name, label, cause.into())),
        };
        let now = sys::link(&link).map_err(|cause| failed(name, label, cause.into()))?;
        let program = self.bpf.program(name).ok_or(DatapathError::MissingProgram(name))?;
        let fd = program.fd().map_err(|cause| failed(name, label, cause.into()))?;
        if now.target == target && sys::update_link(&link, fd.as_fd()).is_ok() {
            return Ok(true);
        }
        unpin(pin)?;
        Ok(false)
    }

    fn program<'a, T>(&'a mut self, name: &'static str) -> Result<&'a mut T, DatapathError>
    where
        &'a mut T: TryFrom<&'a mut aya::programs::Program>,
    {
        let program = self.bpf.program_mut(name).ok_or(DatapathError::MissingProgram(name))?;
        program.try_into().map_err(|_| DatapathError::MissingProgram(name))
    }

    fn detach_unwanted(&self, wanted: &BTreeSet<String>) -> Result<(), DatapathError> {
        for pin in self.pins() {
            let ours = pin.split_once('-').is_some_and(|(name, _)| DEVICE_PROGRAMS.contains(&name));
            if ours && !wanted.contains(&pin) {
                unpin(&self.links_dir().join(&pin))?;
            }
        }
        Ok(())
    }

    /// A predecessor with another layout of maps: its programs ran until now.
    fn remove_other_versions(&self) -> Result<(), DatapathError> {
        let Some(bpf_dir) = self.root.parent() else { return Ok(()) };
        for dir in crate::cleanup::versions(bpf_dir) {
            if dir.file_name() != self.root.file_name() {
                crate::cleanup::remove_version(&dir)?;
            }
        }
        Ok(())
    }

    fn pin(&self, program: &str, interface: &str) -> PathBuf {
        self.links_dir().join(pin_name(program, interface))
    }
}

/// Detaches and forgets the link, if there is one.
pub(crate) fn unpin(pin: &Path) -> Result<(), DatapathError> {
    if let Ok(link) = sys::open_pin(pin) {
        // Refused where the target is gone: detached already.
        let _ = sys::detach_link(&link);
    }
    match fs::remove_file(pin) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(DatapathError::Pins { path: pin.into(), cause }),
        _ => Ok(()),
    }
}

fn keep(link: FdLink, pin: &Path, name: &str, target: &str) -> Result<(), DatapathError> {
    link.pin(pin).map(drop).map_err(|cause| failed(name, target, cause.into()))
}

fn failed(program: &str, target: &str, cause: Box<dyn std::error::Error + Send + Sync>) -> DatapathError {
    DatapathError::Attach { program: program.into(), target: target.into(), cause }
}

/// bpffs allows no dots in names; interfaces (VLANs) have them.
fn pin_name(program: &str, interface: &str) -> String {
    format!("{program}-{}", interface.replace('%', "%25").replace('.', "%2e"))
}

fn unescape(interface: &str) -> String {
    interface.replace("%2e", ".").replace("%25", "%")
}

/// The interface that a pin's name ends with, if it is one of an interface.
pub(crate) fn interface_of(pin: &OsStr) -> Option<String> {
    let (_, interface) = pin.to_str()?.split_once('-')?;
    Some(unescape(interface))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_of_vlan_interfaces_have_no_dot_and_come_back() {
        let pin = pin_name("from_pod", "eth0.100%a");
        assert!(!pin.contains('.'));
        assert_eq!(interface_of(OsStr::new(&pin)).as_deref(), Some("eth0.100%a"));
    }
}
