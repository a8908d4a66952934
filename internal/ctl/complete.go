package ctl

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// completeWait bounds how long a shell waits for names of topics and groups.
const completeWait = 2 * time.Second

// completing makes a command's arguments, and those of the commands below it, complete to what the cluster has.
func completing(cmd *cobra.Command) *cobra.Command {
	for _, c := range cmd.Commands() {
		completing(c)
	}
	switch use := cmd.Use; {
	case strings.Contains(use, "create"): // a name that is not there yet
	case strings.Contains(use, "TOPIC"):
		cmd.ValidArgsFunction = completion(topicNames, strings.Contains(use, "TOPIC..."))
	case strings.Contains(use, "GROUP"):
		cmd.ValidArgsFunction = completion(groupNames, strings.Contains(use, "GROUP..."))
	}
	return cmd
}

func topicNames(ctx context.Context, admin *kadm.Client) ([]string, error) {
	topics, err := admin.ListTopics(ctx)
	return topics.Names(), err
}

func groupNames(ctx context.Context, admin *kadm.Client) ([]string, error) {
	groups, err := admin.ListGroups(ctx)
	return groups.Groups(), err
}

// completion completes names, one or many. Where no cluster answers there is nothing to complete.
func completion(names func(context.Context, *kadm.Client) ([]string, error), many bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		none := cobra.ShellCompDirectiveNoFileComp
		brokers, err := cmd.Flags().GetString("brokers")
		if err != nil || !many && len(args) > 0 {
			return nil, none
		}
		cl, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(brokers, ",")...), kgo.DialTimeout(completeWait), kgo.RetryTimeout(completeWait))
		if err != nil {
			return nil, none
		}
		defer cl.Close()
		ctx, cancel := context.WithTimeout(context.Background(), completeWait)
		defer cancel()
		all, err := names(ctx, kadm.NewClient(cl))
		if err != nil && len(all) == 0 {
			return nil, none
		}
		return slices.DeleteFunc(all, func(n string) bool { return !strings.HasPrefix(n, prefix) || slices.Contains(args, n) }), none
	}
}
