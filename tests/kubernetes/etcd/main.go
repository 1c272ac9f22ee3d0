// The etcd server, from the module that the API server's client comes from: an older one cannot serve streaming lists.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}
