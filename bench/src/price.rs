//! What paging costs, and how far that is from what the machine can do at best.
//!
//! The floor of a touch that waits is a bare fault that userland serves, which copies a page home, and what fetches the
//! page: the codec, or a read of the file. The floor of the time for a GiB is the time in RAM, and for the part of the
//! working set that cannot be resident (a part of 1 - RAM / size of all touches, whatever is kept):
//!
//! - in order: fetching it by 2 MiB, moving it home, moving as much out, and, if it was written to, storing that;
//! - at random: such a fault for each page, moving a page out, and, if pages are written to, storing one.
//!
//! All of that is one thread's, one after the other: who works on several processors can be below it. Kernel swap does
//! without the fault in userland, and is compared with the same floor.

use crate::data::{Data, PAGE_BYTES};
use crate::floors::Floors;
use crate::report::{Cell, Medians, beside};
use crate::size::Size;
use crate::system::{Budget, System};
use crate::workload::Order;

const GIB: f64 = (1_u64 << 30) as f64;
const BLOCK_BYTES: usize = 2 << 20;

/// Where pages are that are not resident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    /// In RAM, compressed.
    Compressed,
    /// In a file.
    File,
}

/// Figures of one cell.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Price {
    /// Median latency of a touch that waited, over its floor; only where touches are at random.
    pub(crate) p50_to_floor: Option<f64>,
    /// Time for the work over its floor.
    pub(crate) time_to_floor: Option<f64>,
    /// CPU time of the machine, beyond that of the same worker in RAM, for each GiB that was moved.
    pub(crate) cpu_seconds_per_gib_moved: Option<f64>,
}

/// What fetching and storing takes at best, in nanoseconds.
struct Transfer {
    fetch_ns: f64,
    store_ns: f64,
}

/// Fills in the price of every cell that has one.
pub(crate) fn set(cells: &mut [Cell], floors: &Floors, budget: &Budget, size: Size) {
    let price = |cell: &Cell| {
        let medium = cell.system.medium(budget)?;
        let ram = beside(cells, cell, System::Ram).and_then(|ram| ram.median.as_ref());
        let away = 1.0 - (budget.ram.bytes as f64 / size.bytes as f64).min(1.0);
        Some(of(cell, cell.median.as_ref()?, ram, (floors, medium, away)))
    };
    let prices: Vec<Option<Price>> = cells.iter().map(price).collect();
    cells.iter_mut().zip(prices).for_each(|(cell, price)| cell.price = price);
}

fn of(
    cell: &Cell,
    median: &Medians,
    ram: Option<&Medians>,
    (floors, medium, away): (&Floors, Medium, f64),
) -> Price {
    let fault = fault_ns(floors, medium, cell.data);
    let random = cell.workload.order() == Some(Order::Random);
    let seconds = |median: &Medians| GIB / (median.mb_per_s * 1e6);
    let paging = match cell.workload.order() {
        Some(Order::Random) => page_ns(floors, medium, cell).map(|ns| ns * GIB / PAGE_BYTES as f64),
        Some(Order::Sequential) => block_ns(floors, medium, cell).map(|ns| ns * GIB / BLOCK_BYTES as f64),
        None => None,
    };
    let floor = ram.zip(paging).map(|(ram, ns)| seconds(ram) + away * ns / 1e9);
    let moved = median.moved_bytes.filter(|bytes| *bytes >= GIB / 1024.0);
    Price {
        p50_to_floor: median.fault_latency.zip(fault).filter(|_| random).map(|(at, ns)| at.p50_ns / ns),
        time_to_floor: floor.map(|floor| seconds(median) / floor),
        // What is not more than in RAM is what others did on the machine.
        cpu_seconds_per_gib_moved: ram
            .zip(moved)
            .map(|(ram, moved)| (median.run_machine_seconds - ram.run_machine_seconds) / (moved / GIB))
            .filter(|seconds| *seconds > 0.0),
    }
}

/// A touch that waits for one page.
fn fault_ns(floors: &Floors, medium: Medium, data: Data) -> Option<f64> {
    Some(floors.fault.get()?.same_cpu_ns + transfer(floors, medium, data, PAGE_BYTES)?.fetch_ns)
}

/// A page that comes home by a fault, and another that has to go for it.
fn page_ns(floors: &Floors, medium: Medium, cell: &Cell) -> Option<f64> {
    let store = transfer(floors, medium, cell.data, PAGE_BYTES)?.store_ns;
    let out = floors.verbs.get()?.move_4k_ns + if cell.workload.writes() { store } else { 0.0 };
    Some(fault_ns(floors, medium, cell.data)? + out)
}

/// The same of 2 MiB at a time, which nobody has to wait for.
fn block_ns(floors: &Floors, medium: Medium, cell: &Cell) -> Option<f64> {
    let Transfer { fetch_ns, store_ns } = transfer(floors, medium, cell.data, BLOCK_BYTES)?;
    let store = if cell.workload.writes() { store_ns } else { 0.0 };
    Some(fetch_ns + 2.0 * floors.verbs.get()?.move_2m_ns + store)
}

fn transfer(floors: &Floors, medium: Medium, data: Data, unit_bytes: usize) -> Option<Transfer> {
    let ns = |gb_per_s: f64| unit_bytes as f64 / gb_per_s;
    match medium {
        Medium::Compressed => {
            let lz4 = floors.lz4(data, unit_bytes)?;
            Some(Transfer { fetch_ns: ns(lz4.decompress_gb_per_s), store_ns: ns(lz4.compress_gb_per_s) })
        }
        Medium::File => {
            let file = floors.file.as_ref()?.get()?;
            let fetch_ns = if unit_bytes == PAGE_BYTES { file.read_4k_ns } else { ns(file.read_gb_per_s) };
            Some(Transfer { fetch_ns, store_ns: ns(file.write_gb_per_s) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use crate::workload::Workload;

    const NS_IN_LZ4: f64 = 4096.0 / 3.0;

    fn budget() -> Budget {
        Budget { ram: Size::mib(512), ..Budget::default() }
    }

    #[test]
    fn sequential_work_is_compared_with_what_2_mib_take() {
        let report = sample::report();
        let hmm = report.cells.iter().find(|cell| cell.system == System::Hmm).unwrap();
        // In RAM 0.25 s; half of 512 blocks that are decompressed, moved twice and compressed.
        let block_ns = 2_097_152.0 / 4.0 + 2.0 * 33_000.0 + 2_097_152.0;
        let floor = 0.25 + 0.5 * 512.0 * block_ns / 1e9;
        let price = hmm.price.as_ref().unwrap();
        assert!((price.time_to_floor.unwrap() / (1.0 / floor) - 1.0).abs() < 1e-9, "{price:?} {floor}");
        assert_eq!(price.p50_to_floor, None, "its touches wait for what comes in blocks");
        // A machine second more than in RAM for 2 GiB, of which the sample says that they were moved.
        assert_eq!(price.cpu_seconds_per_gib_moved, Some(0.375));
        assert!(report.cells[..2].iter().all(|cell| cell.price.is_none()), "nothing moves in RAM");
    }

    #[test]
    fn random_touches_are_compared_with_a_bare_fault_and_the_codec() {
        let mut report = sample::report();
        report.cells.iter_mut().for_each(|cell| cell.workload = Workload::Randread);
        set(&mut report.cells, &report.floors, &budget(), Size::mib(1024));
        let price = report.cells[2].price.clone().unwrap();
        let fault_ns = 7300.0 + NS_IN_LZ4;
        assert!((price.p50_to_floor.unwrap() - 4000.0 / fault_ns).abs() < 1e-9, "{price:?}");
        let floor = 0.25 + 0.5 * 262_144.0 * (fault_ns + 1000.0) / 1e9;
        assert!((price.time_to_floor.unwrap() / (1.0 / floor) - 1.0).abs() < 1e-9, "{price:?} {floor}");
    }

    #[test]
    fn work_of_others_is_no_price() {
        let mut report = sample::report();
        let busy = report.cells[0].median.as_mut().unwrap();
        busy.run_machine_seconds = 100.0;
        set(&mut report.cells, &report.floors, &budget(), Size::mib(1024));
        assert_eq!(report.cells[2].price.as_ref().unwrap().cpu_seconds_per_gib_moved, None);
    }

    #[test]
    fn without_floors_there_is_no_distance() {
        let mut report = sample::report();
        report.floors.lz4.clear();
        let mut cells = report.cells;
        set(&mut cells, &report.floors, &budget(), Size::mib(1024));
        assert_eq!(cells[2].price.as_ref().unwrap().time_to_floor, None);
    }
}
