// Package chaos runs built servers as processes and breaks what can be broken around them: the processes, their disks, the network
// between them and to their clients. Package oracle then holds the cluster to what it acknowledged. It is a test, and of Linux only:
// what it does needs /proc, namespaces, loop devices and strace.
package chaos
