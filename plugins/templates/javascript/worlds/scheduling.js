// Spreads pods: the node with the largest share of free CPU is best. wit/ says what the input is; numbers are exact up to 2^53.

export { metadata } from "./build/metadata.js";

export const placer = {
    place(input) {
        const verdicts = input.nodes.map((node) => {
            const free = node.milliCpu - node.milliCpuUsed - input.pod.milliCpu;
            return free < 0 || node.milliCpu <= 0 ? -1 : Math.trunc((free * 100) / node.milliCpu);
        });
        return { verdicts, reasons: ["the node has too little free CPU"] };
    },
};
