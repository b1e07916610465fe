//! A breadth-first walk: what databases of relations and solvers do to memory.
//!
//! Each node has so many edges to nodes that are anywhere, and they lie one after the other. Who walks it reads the edges of
//! nodes in no order that anybody could foresee.

use crate::data::mix;
use anyhow::{Context, Result};
use std::io::Write;
use std::process::ExitCode;

/// Arguments of the hidden subcommand [`GraphArgs::SUBCOMMAND`], which `hmm bench --applications` starts.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct GraphArgs {
    /// Nodes.
    #[arg(long)]
    pub(crate) nodes: u32,
    /// Edges of each node, 4 bytes each.
    #[arg(long)]
    pub(crate) degree: u64,
}

impl GraphArgs {
    /// Name that the `hmm` command has to mount [`graph`] under, hidden.
    pub const SUBCOMMAND: &str = "bench-graph";

    /// The command line that these arguments come from.
    pub(super) fn command_line(self, program: String) -> Vec<String> {
        let Self { nodes, degree } = self;
        vec![program, Self::SUBCOMMAND.to_owned(), format!("--nodes={nodes}"), format!("--degree={degree}")]
    }
}

/// Walks over a graph, and prints how many nodes it has reached and how far they are.
///
/// # Errors
/// Standard output fails.
pub fn graph(args: &GraphArgs) -> Result<ExitCode> {
    let degree = usize::try_from(args.degree).context("more edges than can be")?;
    let edges = edges(args.nodes, degree);
    let (reached, sum) = walk(args.nodes, degree, &edges);
    writeln!(std::io::stdout(), "{reached} of {} nodes reached, distances {sum:#x}", args.nodes)
        .context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

fn edges(nodes: u32, degree: usize) -> Vec<u32> {
    let nr_edges = nodes as usize * degree;
    (0..nr_edges as u64).map(|edge| (((mix(edge) >> 32) * u64::from(nodes)) >> 32) as u32).collect()
}

/// How many nodes can be reached from the first, and a sum over all of them and their distances.
fn walk(nodes: u32, degree: usize, edges: &[u32]) -> (u32, u64) {
    const FAR: u32 = u32::MAX;
    let mut distances = vec![FAR; nodes as usize];
    let mut queue = std::collections::VecDeque::from([0_u32]);
    distances[0] = 0;
    let (mut reached, mut sum) = (0, 0_u64);
    while let Some(node) = queue.pop_front() {
        let distance = distances[node as usize];
        reached += 1;
        sum = sum.wrapping_add(mix(u64::from(node) << 32 | u64::from(distance)));
        for next in &edges[node as usize * degree..][..degree] {
            let known = &mut distances[*next as usize];
            if *known == FAR {
                *known = distance + 1;
                queue.push_back(*next);
            }
        }
    }
    (reached, sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_goes_everywhere_it_can() {
        // 0 -> 1 -> 2 -> 0, and 3 by itself.
        let (reached, sum) = walk(4, 1, &[1, 2, 0, 3]);
        let one = |node: u64, distance: u64| mix(node << 32 | distance);
        assert_eq!((reached, sum), (3, one(0, 0).wrapping_add(one(1, 1)).wrapping_add(one(2, 2))));
        let edges = edges(1000, 16);
        assert!(edges.iter().all(|node| *node < 1000));
        assert!(walk(1000, 16, &edges).0 > 990);
    }
}
