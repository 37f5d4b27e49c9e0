//! The metrics of a cgroup in the unified hierarchy.
//! One directory has all files; a controller that is not enabled for the cgroup has none.

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData, PSIStats, PidsStat,
    RdmaEntry, RdmaStat,
};
use protobuf::MessageField;

use super::{Files, device};

/// `None` if nothing can be read: the cgroup has been removed.
pub(super) fn metrics(files: &mut Files, page_sizes: &[String]) -> Option<Metrics> {
    let metrics = Metrics {
        pids: pids(files).into(),
        cpu: cpu(files).into(),
        memory: memory(files).into(),
        rdma: rdma(files).into(),
        io: io(files).into(),
        hugetlb: page_sizes.iter().filter_map(|size| hugetlb(files, size)).collect(),
        memory_events: memory_events(files).into(),
        ..Metrics::default()
    };
    (metrics.cpu.is_some() || metrics.memory.is_some() || metrics.pids.is_some()).then_some(metrics)
}

fn pids(files: &mut Files) -> Option<PidsStat> {
    let current = files.number("pids.current")?;
    let limit = files.number("pids.max").unwrap_or_default();
    Some(PidsStat { current, limit, ..PidsStat::default() })
}

fn cpu(files: &mut Files) -> Option<CPUStat> {
    let mut cpu = CPUStat::default();
    for (key, value) in files.pairs("cpu.stat")? {
        match key {
            "usage_usec" => cpu.usage_usec = value,
            "user_usec" => cpu.user_usec = value,
            "system_usec" => cpu.system_usec = value,
            "nr_periods" => cpu.nr_periods = value,
            "nr_throttled" => cpu.nr_throttled = value,
            "throttled_usec" => cpu.throttled_usec = value,
            "nr_bursts" => cpu.nr_bursts = value,
            "burst_usec" => cpu.burst_usec = value,
            _ => {}
        }
    }
    cpu.psi = pressure(files, "cpu.pressure");
    Some(cpu)
}

fn memory(files: &mut Files) -> Option<MemoryStat> {
    let mut memory = MemoryStat { usage: files.number("memory.current")?, ..MemoryStat::default() };
    memory_stat(files, &mut memory);
    let mut number = |name| files.number(name).unwrap_or_default();
    memory.usage_limit = number("memory.max");
    memory.max_usage = number("memory.peak");
    memory.swap_usage = number("memory.swap.current");
    memory.swap_limit = number("memory.swap.max");
    memory.swap_max_usage = number("memory.swap.peak");
    memory.psi = pressure(files, "memory.pressure");
    Some(memory)
}

fn memory_stat(files: &mut Files, memory: &mut MemoryStat) {
    for (key, value) in files.pairs("memory.stat").into_iter().flatten() {
        match key {
            "anon" => memory.anon = value,
            "file" => memory.file = value,
            "kernel_stack" => memory.kernel_stack = value,
            "slab" => memory.slab = value,
            "sock" => memory.sock = value,
            "shmem" => memory.shmem = value,
            "file_mapped" => memory.file_mapped = value,
            "file_dirty" => memory.file_dirty = value,
            "file_writeback" => memory.file_writeback = value,
            "anon_thp" => memory.anon_thp = value,
            "inactive_anon" => memory.inactive_anon = value,
            "active_anon" => memory.active_anon = value,
            "inactive_file" => memory.inactive_file = value,
            "active_file" => memory.active_file = value,
            "unevictable" => memory.unevictable = value,
            "slab_reclaimable" => memory.slab_reclaimable = value,
            "slab_unreclaimable" => memory.slab_unreclaimable = value,
            "pgfault" => memory.pgfault = value,
            "pgmajfault" => memory.pgmajfault = value,
            // Newer kernels tell the two kinds apart.
            "workingset_refault" | "workingset_refault_anon" | "workingset_refault_file" => {
                memory.workingset_refault = memory.workingset_refault.saturating_add(value);
            }
            "workingset_activate" | "workingset_activate_anon" | "workingset_activate_file" => {
                memory.workingset_activate = memory.workingset_activate.saturating_add(value);
            }
            "workingset_nodereclaim" => memory.workingset_nodereclaim = value,
            "pgrefill" => memory.pgrefill = value,
            "pgscan" => memory.pgscan = value,
            "pgsteal" => memory.pgsteal = value,
            "pgactivate" => memory.pgactivate = value,
            "pgdeactivate" => memory.pgdeactivate = value,
            "pglazyfree" => memory.pglazyfree = value,
            "pglazyfreed" => memory.pglazyfreed = value,
            "thp_fault_alloc" => memory.thp_fault_alloc = value,
            "thp_collapse_alloc" => memory.thp_collapse_alloc = value,
            _ => {}
        }
    }
}

/// By `oom_kill` CRI tells a container that ran out of memory from one that was killed.
fn memory_events(files: &mut Files) -> Option<MemoryEvents> {
    let mut events = MemoryEvents::default();
    for (key, value) in files.pairs("memory.events")? {
        match key {
            "low" => events.low = value,
            "high" => events.high = value,
            "max" => events.max = value,
            "oom" => events.oom = value,
            "oom_kill" => events.oom_kill = value,
            "oom_group_kill" => events.oom_group_kill = value,
            _ => {}
        }
    }
    Some(events)
}

fn io(files: &mut Files) -> Option<IOStat> {
    let usage = files.text("io.stat")?.lines().filter_map(io_entry).collect();
    Some(IOStat { usage, psi: pressure(files, "io.pressure"), ..IOStat::default() })
}

/// A line of `io.stat`: a device, and what was done with it.
fn io_entry(line: &str) -> Option<IOEntry> {
    let mut entry = IOEntry::default();
    let mut any = false;
    for word in line.split_ascii_whitespace() {
        let Some((key, value)) = word.split_once('=') else {
            // Some kernels leave the line break out behind a device that has nothing to tell.
            (entry.major, entry.minor) = device(word)?;
            continue;
        };
        let field = match key {
            "rbytes" => &mut entry.rbytes,
            "wbytes" => &mut entry.wbytes,
            "rios" => &mut entry.rios,
            "wios" => &mut entry.wios,
            _ => continue,
        };
        *field = value.parse().ok()?;
        any = true;
    }
    any.then_some(entry)
}

fn rdma(files: &mut Files) -> Option<RdmaStat> {
    let entry = |device, hca_handles, hca_objects| RdmaEntry {
        device,
        hca_handles,
        hca_objects,
        ..RdmaEntry::default()
    };
    let current = files.rdma("rdma.current", entry)?;
    let limit = files.rdma("rdma.max", entry).unwrap_or_default();
    Some(RdmaStat { current, limit, ..RdmaStat::default() })
}

fn hugetlb(files: &mut Files, size: &str) -> Option<HugeTlbStat> {
    let current = files.number(&format!("hugetlb.{size}.current"))?;
    let max = files.number(&format!("hugetlb.{size}.max")).unwrap_or_default();
    let mut events = files.pairs(&format!("hugetlb.{size}.events")).into_iter().flatten();
    let failcnt = events.find(|(key, _)| *key == "max").map_or(0, |(_, count)| count);
    Some(HugeTlbStat { current, max, pagesize: size.to_owned(), failcnt, ..HugeTlbStat::default() })
}

/// How long tasks were stalled for want of something: some of them, or all at once.
fn pressure(files: &mut Files, name: &str) -> MessageField<PSIStats> {
    let Some(text) = files.text(name) else { return MessageField::none() };
    let mut psi = PSIStats::default();
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("some", values)) => psi.some = stalled(values).into(),
            Some(("full", values)) => psi.full = stalled(values).into(),
            _ => {}
        }
    }
    MessageField::some(psi)
}

/// `avg10=0.12 avg60=0.34 avg300=0.56 total=789`.
fn stalled(values: &str) -> Option<PSIData> {
    let mut data = PSIData::default();
    for word in values.split(' ') {
        match word.split_once('=')? {
            ("avg10", value) => data.avg10 = value.parse().ok()?,
            ("avg60", value) => data.avg60 = value.parse().ok()?,
            ("avg300", value) => data.avg300 = value.parse().ok()?,
            ("total", value) => data.total = value.parse().ok()?,
            _ => {}
        }
    }
    Some(data)
}
