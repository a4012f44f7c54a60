// Command stargz is the peer that lazyfs is measured against: stargz-snapshotter's own library, in its default
// configuration, as a proxy snapshotter of containerd. Debian packages no daemon of it, and upstream's has a module of its own
// with replacements, which `go install` refuses.
//
//	stargz SOCKET ROOT [HOST:PORT]...
//
// The registries that are named are spoken to without TLS. It ends at SIGTERM, and takes its mounts with it.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/stargz-snapshotter/service"
	"github.com/containerd/stargz-snapshotter/service/resolver"
	"google.golang.org/grpc"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: stargz SOCKET ROOT [HOST:PORT]...")
		os.Exit(2)
	}
	if err := serve(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, "stargz:", err)
		os.Exit(1)
	}
}

func serve(socket, root string, plainHTTP []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	hosts := make(map[string]resolver.HostConfig, len(plainHTTP))
	for _, host := range plainHTTP {
		hosts[host] = resolver.HostConfig{Mirrors: []resolver.MirrorConfig{{Host: host, Insecure: true}}}
	}
	config := service.Config{ResolverConfig: service.ResolverConfig{Host: hosts}}
	snapshotter, err := service.NewStargzSnapshotterService(context.Background(), root, &config)
	if err != nil {
		return err
	}
	defer snapshotter.Close() // unmounts its layers
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	go func() {
		<-ctx.Done()
		server.GracefulStop()
	}()
	return server.Serve(listener)
}
