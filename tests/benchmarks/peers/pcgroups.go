// Reads {"partitions": P, "memberships": [[name, ...], ...]} and prints, for each step from one
// membership to the next, how many partitions orbit.go's pcgroups moves: those whose owner is another
// one although the one before is still a member.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/synadia-io/orbit.go/pcgroups"
)

type question struct {
	Partitions  uint       `json:"partitions"`
	Memberships [][]string `json:"memberships"`
}

func owners(members []string, partitions uint) map[string]string {
	found := map[string]string{}
	for _, member := range members {
		for _, filter := range pcgroups.GeneratePartitionFilters(members, partitions, nil, member, ">") {
			found[strings.SplitN(filter, ".", 2)[0]] = member
		}
	}
	return found
}

func main() {
	var asked []question
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	answers := make([][]int, 0, len(asked))
	for _, one := range asked {
		moves := []int{}
		before := owners(one.Memberships[0], one.Partitions)
		for _, members := range one.Memberships[1:] {
			present := map[string]bool{}
			for _, member := range members {
				present[member] = true
			}
			after := owners(members, one.Partitions)
			moved := 0
			for partition, member := range before {
				if present[member] && after[partition] != member {
					moved++
				}
			}
			moves = append(moves, moved)
			before = after
		}
		answers = append(answers, moves)
	}
	if err := json.NewEncoder(os.Stdout).Encode(answers); err != nil {
		os.Exit(1)
	}
}
